"""The command `cats`, with one file per command."""
