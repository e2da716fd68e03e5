"""Small architectures for the tests of the engines: {name: function that builds one}, by what is unusual in them.

The families follow the questions that an engine must answer: how parameters are shared and hidden (basic), which layers
there are (layers, sequences), in which form a parameter is used (weights), whose rows these are (rows), and whether
examples interact (mixing).
"""

from .basic import BASIC
from .layers import LAYERS
from .mixing import MIXING
from .net import BATCHES, TASKS, Net
from .rows import ROWS
from .sequences import SEQUENCES
from .weights import WEIGHTS

ARCHITECTURES = BASIC | LAYERS | SEQUENCES | WEIGHTS | ROWS | MIXING

__all__ = ["ARCHITECTURES", "BATCHES", "MIXING", "TASKS", "Net"]
