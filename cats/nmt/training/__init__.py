"""Training, and the run directory that it writes."""
