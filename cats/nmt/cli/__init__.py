"""The command `cats`: one command a file."""
