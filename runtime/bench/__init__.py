"""``mmgen bench``: what requests take on this machine.  Imports the generator; only the command line imports it."""
