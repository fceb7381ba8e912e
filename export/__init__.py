"""Take trained generators out of torch: checkpoint to bundle.  Import the modules; this one stays free of torch."""
