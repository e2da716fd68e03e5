"""What can be set: the settings and their files, and the published recipes."""
