"""What is built from a bundle for a device, and kept in it: engines and optimised graphs.  Imports ``storage``."""
