"""Linear systems, each image on its own."""

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradient(system: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Returns the iterate u of system(u) = b from zero, for each image of the batch on its own.

    A direction without positive curvature (the Jacobian of a network is only nearly symmetric) ends an image's
    iteration, and leaves the others alone.

    Arguments:
        system: A symmetric positive definite map of (B, ...) tensors, images apart.
        b: (B, ...) right-hand sides.
        iterations: The number of products with the system.
    """
    shape = (-1, *[1] * (b.ndim - 1))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1).reshape(shape)

    u, r, p = torch.zeros_like(b), b, b
    rho = dot(r, r)
    for _ in range(iterations):
        q = system(p)
        curvature = dot(p, q)
        length = torch.where(curvature > 0, rho / curvature, 0)
        u, r = u + length * p, r - length * q
        rho, before = dot(r, r), rho
        p = r + torch.where(before > 0, rho / before, 0) * p
    return u
