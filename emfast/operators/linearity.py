"""Whether an operator is what samplers take it for: linear, with the adjoint that it says it has; or simulated."""

from functools import partial

import torch
from torch import Tensor

from emfast import random
from emfast._check import check
from emfast.operators.base import Operator, Parameters

# Rounding is this many times the precision of the numbers at most, relative to the lengths of the vectors.
ROUNDING = 100.0
LOWER = (torch.bfloat16, torch.float16, torch.float32)


def check_linear(operator: Operator, ids: Tensor, shape: tuple[int, ...], observed: tuple[int, ...]) -> None:
    r"""Tries an operator on random vectors, in float64 if it takes that, else in float32.

    .. math:: A (x - 2 z) = A x - 2 A z, \quad \langle A x, y \rangle = \langle x, A^\top y \rangle

    An operator that rounds to a lower precision inside, as a physics with float32 filters does, is allowed the errors
    of that precision.

    Arguments:
        operator: The operator.
        ids: (B,) ids of observations, on the device to try it on.
        shape: (C, H, W) of an image.
        observed: The shape of an observation.
    Raises:
        ValueError: If one of the two does not hold, or images mix; the operator and the numbers are named.
    """
    draw = partial(torch.randn, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shapes = (shape, shape, observed)
    x, z, y = (draw(len(ids), *one).to(ids.device) for one in shapes)
    parameters = operator.parameters(ids, observed)
    try:
        a_x, back = operator.apply(x, parameters), operator.adjoint(y, parameters)
    except (RuntimeError, TypeError, ValueError):  # whatever it raises for float64; float32 is what a run gives it
        x, z, y = x.float(), z.float(), y.float()
        a_x, back = operator.apply(x, parameters), operator.adjoint(y, parameters)
    mixed, apart = operator.apply(x - 2 * z, parameters), a_x - 2 * operator.apply(z, parameters)
    ours, theirs = _product(a_x, y), _product(x, back)
    bent = _product(mixed - apart, mixed - apart).sqrt()
    size = _product(a_x, a_x).sqrt() + _product(apart, apart).sqrt()
    span = (_product(a_x, a_x) * _product(y, y)).sqrt() + (_product(x, x) * _product(back, back)).sqrt()

    # What takes no float64 may compute on a GPU in TF32, whose ten bits are those of float16.
    eps = torch.finfo(torch.float16 if x.is_cuda and x.dtype == torch.float32 else x.dtype).eps
    if not bool(((bent <= ROUNDING * eps * size) & ((ours - theirs).abs() <= ROUNDING * eps * span)).all()):
        eps = max(eps, _precision(operator, x, a_x, parameters))
    name = _name(operator)
    for b, s, o, t, p in zip(*(v.tolist() for v in (bent, size, ours, theirs, span)), strict=True):
        requirement = f"to be 0 up to rounding, for A is to be linear (|A x| + |A x - 2 A z| is {s:.6g})"
        fix = "Leave offsets, clipping and noise out of apply"
        check(b <= ROUNDING * eps * s, name, "|A(x - 2 z) - (A x - 2 A z)|", requirement, f"{b:.6g}", fix)
        fix = "Make adjoint the transpose of apply; torch.func.vjp of apply is one"
        good = abs(o - t) <= ROUNDING * eps * p
        check(good, name, "<x, A^T y>", f"to be <A x, y> = {o:.9g} up to rounding", f"{t:.9g}", fix)
    _check_rows(operator, x, a_x, ids, observed)


def check_simulated(
    operator: Operator, ids: Tensor, shape: tuple[int, ...], observed: tuple[int, ...], sigma: float
) -> None:
    """Tries an operator that can only be simulated: its observations belong to (seed, id), whatever the batch.

    Arguments:
        operator: The operator.
        ids: (B,) ids of observations, 2 or more, on the device to try it on.
        shape: (C, H, W) of an image.
        observed: The shape of an observation.
        sigma: The noise level of the run.
    Raises:
        ValueError: If observations have values that are not finite, or depend on others, or on random numbers of others
            than the generator.
    """
    x = torch.rand(len(ids), *shape, generator=torch.Generator().manual_seed(0)).to(ids.device) * 2 - 1
    y = operator.simulate(x, operator.parameters(ids, observed), random.Generator(ids, 1), sigma)
    name = _name(operator)
    finite = bool(y.isfinite().all())
    check(finite, name, "its observations", "to be finite", "NaN or infinity, of images in [-1, 1]")
    for row in range(len(ids)):
        one = slice(row, row + 1)
        parameters = operator.parameters(ids[one], observed)
        alone = operator.simulate(x[one], parameters, random.Generator(ids[one], 1), sigma)
        fix = "Draw all random numbers from the generator, and keep the images of a batch apart"
        fits = alone.shape == y[one].shape and torch.allclose(alone, y[one], rtol=1e-3, atol=1e-3)
        check(fits, name, "an observation", "to be the same alone and in a batch", "another one", fix)


def _check_rows(operator: Operator, x: Tensor, a_x: Tensor, ids: Tensor, observed: tuple[int, ...]) -> None:
    """Finds images that mix: masks (B, H, W) beside images (B, C, H, W), which B = C broadcasts without a word."""
    name, fix = _name(operator), "Row b of every parameter belongs to image b: give masks as (B, 1, H, W)"
    for row in range(len(x)):
        one = slice(row, row + 1)
        alone = operator.apply(x[one], operator.parameters(ids[one], observed))
        fits = alone.shape == a_x[one].shape
        check(fits, name, "A x of one image", f"to have shape {tuple(a_x[one].shape)} as in a batch", alone, fix)
        error, size = ((alone - a_x[one]).abs().max().item(), alone.abs().max().item())
        # A wrong mask is no rounding: the tolerance is that of an operator that computes in bfloat16 inside.
        requirement = f"to be the same alone and in a batch of {len(x)}"
        check(error <= 0.05 * size, name, "A x of one image", requirement, f"|difference| = {error:.4g}", fix)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Returns the inner product of each row, (B,) float64."""
    return (a.double() * b.double()).flatten(1).sum(1)


def _precision(operator: Operator, x: Tensor, a_x: Tensor, parameters: Parameters) -> float:
    """Returns the precision that an operator computes in: of the numbers that it takes for the same as those of x."""
    for dtype in LOWER:
        if torch.equal(operator.apply(x.to(dtype).to(x.dtype), parameters), a_x):
            return torch.finfo(dtype).eps
    return torch.finfo(x.dtype).eps


def _name(operator: Operator) -> str:
    """Returns the name of an operator as its user knows it: that of what a wrapper holds."""
    inner = getattr(operator, "operator", operator)
    if isinstance(name := getattr(inner, "name", None), str):
        return name
    return type(getattr(inner, "physics", inner)).__name__
