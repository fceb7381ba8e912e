"""Networks of mmgen's own checkpoints.  Imports torch alone; ``sources`` imports it."""
