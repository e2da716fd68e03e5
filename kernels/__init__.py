"""Triton kernels for the operators of cats.ops, one file an operator; installed as the package cats.kernels.

A file here holds kernels and the pure functions that launch them; it does not register operators and does not
choose between backends (cats/ops.py does both). Import these modules as cats.kernels, never as kernels: that
top-level name belongs to another package. This file stays free of imports, so that triton is loaded only
where a kernel is used.
"""
