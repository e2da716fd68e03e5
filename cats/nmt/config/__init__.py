"""The settings of a run, their files, and presets of published recipes."""
