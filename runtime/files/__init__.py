"""Files and folders that are written atomically and read with care.  Imports ``base``; any room may import it."""
