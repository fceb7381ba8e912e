"""TensorRT and TensorRT for RTX.  Opened by ``backends.registry``."""
