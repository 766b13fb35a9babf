"""Measurement operators A of y = A x + n."""

from emfast.operators.base import Operator
from emfast.operators.gaussian_blur import GaussianBlur
from emfast.operators.given import Given
from emfast.operators.identity import Identity
from emfast.operators.mask import Mask

__all__ = ["GaussianBlur", "Given", "Identity", "Mask", "Operator"]
