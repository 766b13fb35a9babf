"""Linear systems, each image on its own."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradient(
    system: Callable[[Tensor], Tensor],
    b: Tensor,
    iterations: int,
    precondition: Callable[[Tensor], Tensor] = lambda r: r,
) -> Tensor:
    """Returns the iterate u of system(u) = b from zero of the least residual, for each image of the batch on its own.

    The Jacobian of a network is only nearly symmetric. A direction without positive curvature ends an image's
    iteration, and leaves the others alone; and later iterates may be farther off than earlier ones.

    Arguments:
        system: A symmetric positive definite map of (B, ...) tensors, images apart.
        b: (B, ...) right-hand sides.
        iterations: The number of products with the system.
        precondition: A symmetric positive definite map close to a multiple of the system's inverse.
    """
    shape = (-1, *[1] * (b.ndim - 1))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1).reshape(shape)

    u, r, z = 0 * b, b, precondition(b)  # NaN stays NaN: what is broken is not to pass for what says nothing
    p, rho = z, dot(b, z)
    best, least = u, torch.full_like(rho, math.inf)
    for _ in range(iterations):
        q = system(p)
        curvature = dot(p, q)
        length = torch.where(curvature <= 0, 0, rho / curvature)
        u, r = u + length * p, r - length * q
        z = precondition(r)
        rho, before = dot(r, z), rho
        p = z + torch.where(before > 0, rho / before, 0) * p
        size = dot(r, r)
        closer = (size < least) | curvature.isnan()  # NaN is returned: it is not to pass for an iteration at its end
        best, least = torch.where(closer, u, best), torch.where(closer, size, least)
    return best
