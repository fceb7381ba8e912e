"""Basics that everything else uses: errors, names, numbers, processes.  Imports nothing of mmgen."""
