"""What everything else is written with: errors, names, numbers, processes.  Imports nothing of mmgen."""
