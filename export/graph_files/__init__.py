"""Graphs that exist only as ONNX: read with checks, run by ONNX Runtime, and put into what torch traces."""
