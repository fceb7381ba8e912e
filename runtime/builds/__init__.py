"""What is made of a bundle for a device, and kept in it: engines and optimised graphs.  Imports ``storage``."""
