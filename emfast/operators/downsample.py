"""Super-resolution: A averages blocks of pixels."""

from torch import Tensor
from torch.nn import functional

from emfast._check import check, check_whole
from emfast.operators.base import Operator, Parameters, with_parameters


class Downsample(Operator):
    r"""Average downsampling by a whole factor: one observed pixel is the mean of a square of the image.

    .. math:: A A^\top = I / f^2

    Arguments:
        factor: The side f of the square in pixels, 2 or more; it must divide the sides of the images.
    """

    closed_form = True
    observes_images = True

    def __init__(self, factor: int = 2) -> None:
        check_whole("Downsample", factor=factor)
        check(factor > 1, "Downsample", "factor", "to be 2 or more", factor)
        self.factor = factor

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Returns the block means, (B, C, H / f, W / f)."""
        size, fix = f"{x.shape[-2]} x {x.shape[-1]}", "Crop or resize them"
        divides = x.shape[-2] % self.factor == 0 and x.shape[-1] % self.factor == 0
        check(divides, "Downsample", "the sides of the images", f"to be multiples of {self.factor}", size, fix)
        return functional.avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns each pixel spread evenly over its square, (B, C, f H, f W)."""
        return functional.interpolate(y, scale_factor=self.factor, mode="nearest") / self.factor**2

    def as_image(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns each pixel over its square, (B, C, f H, f W), as bright as it is: A^T y is 1 / f^2 of that."""
        return functional.interpolate(y, scale_factor=self.factor, mode="nearest")

    def condition(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns A^T y rather than `as_image`: networks have been trained on it."""
        return with_parameters(self.adjoint(y, parameters), parameters)

    def gain(self, parameters: Parameters) -> float:
        """Returns 1: means stay in the range of what they are taken of."""
        return 1.0

    def regularised_inverse(self, y: Tensor, c: Tensor, parameters: Parameters, *, iterations: int = 10) -> Tensor:
        """Returns A^T y / (1 / f^2 + c)."""
        return self.adjoint(y, parameters) / (self.factor**-2 + c)
