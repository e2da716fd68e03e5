"""The grid of runs that `cats compare` trains: each method with each seed on each set of languages.

Runs are ordinary run directories: OUT/SET/METHOD-seedN. Each is trained by `cats train` in a process of its own. If a
comparison is stopped, the same command continues it: finished runs are kept, and an interrupted one is resumed from its
last checkpoint.
"""
