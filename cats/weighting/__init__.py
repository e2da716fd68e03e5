"""Task weightings compute one weight per task, from losses, dots and norms or from a Gram matrix."""

from .by_name import torchjd
from .cats import CATS
from .chi_square_dro import ChiSquareDRO
from .cvar_dro import CVaRDRO
from .dwa import DWA
from .famo import FAMO
from .graddrop import GradDrop
from .gradnorm import GradNorm
from .gradvac import GradVac
from .gramian import Gramian, TooFewTasksError
from .group_dro import GroupDRO
from .mgda import MGDA
from .pcgrad import PCGrad
from .protocol import Weighting
from .rlw import RLW
from .static import Static
from .target_projection import TargetProjection
from .uncertainty import Uncertainty

__all__ = [
    "CATS",
    "DWA",
    "FAMO",
    "MGDA",
    "RLW",
    "CVaRDRO",
    "ChiSquareDRO",
    "GradDrop",
    "GradNorm",
    "GradVac",
    "Gramian",
    "GroupDRO",
    "PCGrad",
    "Static",
    "TargetProjection",
    "TooFewTasksError",
    "Uncertainty",
    "Weighting",
    "torchjd",
]
