"""Task weightings compute one weight per task, from losses, dots and norms or from a Gram matrix."""

from .cats import CATS
from .chi_square_dro import ChiSquareDRO
from .cvar_dro import CVaRDRO
from .dwa import DWA
from .famo import FAMO
from .gradnorm import GradNorm
from .gramian import Gramian
from .group_dro import GroupDRO
from .protocol import Weighting
from .rlw import RLW
from .static import Static
from .uncertainty import Uncertainty

__all__ = [
    "CATS",
    "DWA",
    "FAMO",
    "RLW",
    "CVaRDRO",
    "ChiSquareDRO",
    "GradNorm",
    "Gramian",
    "GroupDRO",
    "Static",
    "Uncertainty",
    "Weighting",
]
