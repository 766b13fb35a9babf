"""The last line of a sampler's step: from x_t, x0-hat and the noise of each image to x_s."""

from typing import Any

import torch
from torch import Tensor

from emfast._check import check
from emfast._library import register, run_cpp
from emfast.ops._tensors import DTYPES, accumulate
from emfast.random import reference as normal
from emfast.random import signed


def sampler_update(
    x_t: Tensor,  # (B, ...)
    x_0: Tensor,  # (B, ...)
    guidance: Tensor | None,  # (B, ...)
    table: Tensor,  # (n, 9)
    k: Tensor,  # ()
    *,
    ids: Tensor,  # (B,)
    seed: int,
) -> Tensor:
    r"""Returns x_s, with noise that depends on (seed, id, k) and the place in the image alone.

    .. math:: x_s = c_x x_t + c_0 \hat x_0 + \mathrm{std} \, z + \text{guidance}, \quad z = \texttt{random.normal}

    Arguments:
        x_t: The noisy images; float16, bfloat16, float32 or float64.
        x_0: The estimate of the clean images.
        guidance: What is added, if anything: a step towards the data.
        table: The coefficients of every step, float64, on the device of x_t: c_x, c_0 and std are columns 3, 4 and 5.
        k: The step, an int64 on the device of x_t: the row of the table, and the step of the noise.
        ids: The int64 ids of the images.
        seed: The key of the noise, 0 <= seed < 2^64.

    Returns:
        A contiguous tensor of the shape and dtype of x_t. Arithmetic is float32 (float64 for float64).

    Raises:
        ValueError: If shapes do not match.
        TypeError: If dtypes do not match.

    References:
        | Denoising Diffusion Implicit Models (Song et al., 2020), arXiv 2010.02502
    """
    name = "sampler_update"
    check(x_t.is_floating_point(), name, "x_t", "to be a floating tensor", x_t.dtype, error=TypeError)
    for key, value in (("x_0", x_0), ("guidance", guidance)):
        fits = value is None or value.shape == x_t.shape
        check(fits, name, key, f"of the shape {tuple(x_t.shape)} of x_t", value)
        same = value is None or value.dtype == x_t.dtype
        check(same, name, key, f"of dtype {x_t.dtype}", None if value is None else value.dtype, error=TypeError)
    wide = table.dtype == torch.float64
    check(wide and table.dim() == 2 and table.shape[1] == 9, name, "table", "of shape (n, 9), float64", table)
    check(k.dim() == 0 and k.dtype == torch.int64, name, "k", "to be a 0-dimensional int64 tensor", k)
    check(ids.shape == x_t.shape[:1], name, "ids", lambda: f"of shape ({x_t.shape[0]},)", ids)
    x_s: Tensor = _update(x_t, x_0, guidance, table, k, ids.to(torch.int64), signed(seed, name))
    return x_s


def reference(
    x_t: Tensor, x_0: Tensor, guidance: Tensor | None, table: Tensor, k: Tensor, ids: Tensor, seed: int
) -> Tensor:
    """The specification; its seed is signed."""
    dtype = accumulate(x_t)
    c_x, c_0, std = table.index_select(0, k[None])[0, 3:6].to(dtype).unbind()
    z = normal(x_t.shape[1:], ids, k, seed).to(dtype)
    x_s = c_x * x_t.to(dtype) + c_0 * x_0.to(dtype) + std * z
    return (x_s if guidance is None else x_s + guidance.to(dtype)).to(x_t.dtype).contiguous()


def _fake(x_t: Tensor, *rest: Any) -> Tensor:
    return x_t.new_empty(x_t.shape)


def _cpp(x_t: Tensor, *rest: Any) -> Tensor:
    *tensors, seed = rest
    x_s = _fake(x_t)
    dense = [None if t is None else t.contiguous() for t in (x_t, *tensors)]
    sizes = (DTYPES[x_t.dtype], x_t.shape[0], x_t.numel() // max(x_t.shape[0], 1), tensors[2].shape[0])
    run_cpp("sampler_update", [*dense, x_s], sizes, seed)
    return x_s


def _unsupported(x_t: Tensor, *rest: Any) -> str | None:
    return None if x_t.dtype in DTYPES else f"{x_t.dtype}, which only the reference takes"


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[3], inputs[4])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    table, k = ctx.saved_tensors
    c_x, c_0 = table.index_select(0, k[None])[0, 3:5].to(grad.dtype).unbind()
    needs = ctx.needs_input_grad
    return c_x * grad if needs[0] else None, c_0 * grad if needs[1] else None, grad if needs[2] else None, *[None] * 4


_update = register(
    "sampler_update",
    "(Tensor x_t, Tensor x_0, Tensor? guidance, Tensor table, Tensor k, Tensor ids, int seed) -> Tensor",
    reference=reference,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
    triton="sampler_update",
    cpp=_cpp,
    unsupported=_unsupported,
)
