"""CATS in the training loops of other libraries. Each module is imported by name and needs its library.

:mod:`cats.integrations.transformers`, :mod:`cats.integrations.accelerate` and :mod:`cats.integrations.lightning`.
"""
