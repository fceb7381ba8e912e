"""What a request says, checked, and as arrays that graphs take.  Imports ``solvers`` and ``storage``."""
