"""Pure denoising: A = I."""

from torch import Tensor

from emfast.operators.base import Operator, Parameters


class Identity(Operator):
    """The identity, for denoising: y = x + n."""

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Returns x."""
        return x

    def adjoint(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns y."""
        return y

    def regularised_inverse(self, y: Tensor, c: Tensor, parameters: Parameters, *, iterations: int = 10) -> Tensor:
        """Returns y / (1 + c)."""
        return y / (1 + c)
