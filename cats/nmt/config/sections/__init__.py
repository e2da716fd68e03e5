"""The sections of the configuration, a file for each: what can be set, and what it means."""
