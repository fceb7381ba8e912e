"""The ``Model``, ONNX files, types and rules of operators: what all rooms need.  Imports no other room."""
