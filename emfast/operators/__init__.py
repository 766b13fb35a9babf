"""Measurement operators A of y = A x + n, and others that can only be simulated."""

from emfast.operators.base import Operator as Operator
from emfast.operators.detector import Detector as Detector
from emfast.operators.downsample import Downsample as Downsample
from emfast.operators.from_deepinv import from_deepinv as from_deepinv
from emfast.operators.gaussian_blur import GaussianBlur as GaussianBlur
from emfast.operators.given import Given as Given
from emfast.operators.identity import Identity as Identity
from emfast.operators.linear import Linear as Linear
from emfast.operators.linear import as_operator as as_operator
from emfast.operators.mask import Mask as Mask
from emfast.operators.motion_blur import MotionBlur as MotionBlur
from emfast.operators.poisson_counts import PoissonCounts as PoissonCounts
