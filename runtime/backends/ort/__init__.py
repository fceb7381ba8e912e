"""ONNX Runtime, on the CPU and on a GPU.  Opened by ``backends.registry``."""
