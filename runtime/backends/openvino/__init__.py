"""OpenVINO on the CPU.  Opened by ``backends.registry``."""
