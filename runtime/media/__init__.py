"""Media in files: pictures, film, sound, series, text and arrays, read and written.  Imports ``storage``."""
