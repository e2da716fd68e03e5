"""Triton kernels for the operators of cats.ops, one operator per file, with the functions that launch them.

They are installed as cats.kernels and used by cats/ops/backends/triton.py only. Always import them as cats.kernels: the
top-level name `kernels` belongs to another package.
"""
