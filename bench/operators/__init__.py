"""The benchmark of the operators of `cats.ops`: `python -m bench`."""
