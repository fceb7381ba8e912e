"""Torch modules to ONNX graphs.  Imports ``base`` and ``graphs``."""
