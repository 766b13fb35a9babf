"""Measurement operators A of y = A x + n."""

from emfast.operators.base import Operator
from emfast.operators.downsample import Downsample
from emfast.operators.from_deepinv import from_deepinv
from emfast.operators.gaussian_blur import GaussianBlur
from emfast.operators.given import Given
from emfast.operators.identity import Identity
from emfast.operators.linear import Linear, as_operator
from emfast.operators.mask import Mask
from emfast.operators.motion_blur import MotionBlur

__all__ = [
    "Downsample",
    "GaussianBlur",
    "Given",
    "Identity",
    "Linear",
    "Mask",
    "MotionBlur",
    "Operator",
    "as_operator",
    "from_deepinv",
]
