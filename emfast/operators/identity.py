"""Pure denoising: A = I."""

from torch import Tensor

from emfast.operators.base import Operator, Parameters


class Identity(Operator):
    """The identity, for denoising: y = x + n."""

    closed_form = True
    observes_images = True

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Returns x."""
        return x

    def adjoint(self, y: Tensor, parameters: Parameters) -> Tensor:
        """Returns y."""
        return y

    def gain(self, parameters: Parameters) -> float:
        """Returns 1: a pixel is as it is."""
        return 1.0

    def regularised_inverse(self, y: Tensor, c: Tensor, parameters: Parameters, *, iterations: int = 10) -> Tensor:
        """Returns y / (1 + c)."""
        return y / (1 + c)


def is_identity(kind: type) -> bool:
    """Returns whether A = I for the operators of a class: it is Identity, or one with its `apply` and `adjoint`."""
    return issubclass(kind, Identity) and (kind.apply, kind.adjoint) == (Identity.apply, Identity.adjoint)
