"""The embedded models: a checkpoint folder each, named after its model."""
