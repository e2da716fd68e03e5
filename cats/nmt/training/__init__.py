"""The training run and all that a run directory holds."""
