"""Pictures, drawn with matplotlib: one file for each kind, all in the style of ``style.py``."""
