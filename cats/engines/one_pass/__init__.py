"""The engine one_pass: <g_n, ḡ> of all tasks from one backward pass, without a per-task gradient.

Read run.py first. graph.py finds where the graph uses parameters. derivatives.py knows the nodes that do so. plan.py
decides what is computed by rows; placement.py says which rows belong to which task, and probe.py checks it.
"""

from .batch import Batch
from .run import OnePass

__all__ = ["Batch", "OnePass"]
