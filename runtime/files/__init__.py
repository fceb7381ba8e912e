"""Files and folders that are whole or not there, and read with care.  Imports ``base``; anybody may import it."""
