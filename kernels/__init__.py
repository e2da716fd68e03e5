"""Triton kernels for the operators of cats.ops, one file an operator; installed as the package cats.kernels.

A file here holds kernels and the functions that launch them; checking arguments, registering operators and choosing
between backends is cats/ops.py's. This package is the backend `triton` once it has the functions of cats.reference; it
is imported only when that backend is asked for, so that triton is loaded only where it is used.

Import these modules as cats.kernels, never as kernels: that top-level name belongs to another package.
"""
