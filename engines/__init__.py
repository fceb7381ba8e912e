"""TensorRT engines of a bundle: built, kept and reported.  Imports the runtime, and neither torch nor the exporter."""
