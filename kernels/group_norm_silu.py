"""Group normalisation and SiLU; see _group_norm_tiles.py."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._group_norm_tiles import (
    FORWARD,
    Launch,
    centred,
    group_sum,
    load_channel,
    load_joined,
    place,
    sigmoid,
    store_tile,
    tile_sum,
)
from ._launch import launch


@triton.jit(do_not_specialize=["images"])
def group_norm_moments_kernel(inputs, partial, images, sizes, FORM: tl.constexpr):
    """Writes mean and centred sum of squares of each group over one split.

    Grid (images x bands, splits). partial is (images, 2, splits, groups). Reads x once.
    """
    at, c, inside = place(tl.program_id(0), sizes, FORM)
    image, _, _, _, mask = at
    count = tl.minimum(sizes.pixels - tl.program_id(1) * FORM.block_p, FORM.block_p)
    h = load_joined(inputs.x, inputs.skip, at, sizes, FORM)
    channels = sizes.channels_x + sizes.channels_skip
    shift = load_channel(inputs.channel_bias, image * channels + c, inside, 0.0)
    mean = tile_sum(h, FORM) / (count * FORM.group) + group_sum(shift, FORM) / FORM.group
    d = centred(h, mean - shift, mask, FORM)
    groups, leads = channels // FORM.group, inside & (c % FORM.group == 0)
    row = (2 * image * sizes.splits + tl.program_id(1)) * groups + c // FORM.group
    tl.store(partial + row, mean, mask=leads)
    tl.store(partial + sizes.splits * groups + row, tile_sum(d * d, FORM), mask=leads)


@triton.jit
def merged(partial, image, c, inside, sizes, FORM: tl.constexpr):
    """Returns the mean and the centred sum of squares of each channel's group, from those of all splits."""
    groups = (sizes.channels_x + sizes.channels_skip) // FORM.group
    s = tl.arange(0, FORM.block_s)
    row = (2 * image * sizes.splits + s[None, :]) * groups + (c // FORM.group)[:, None]
    some = inside[:, None] & (s < sizes.splits)[None, :]
    count = tl.maximum(tl.minimum(sizes.pixels - s * FORM.block_p, FORM.block_p), 0)[None, :].to(tl.float32)
    means = tl.load(partial + row, mask=some, other=0.0)
    mean = tl.sum(means * count, 1) / sizes.pixels
    apart = tl.where(some, means - mean[:, None], 0.0)
    squares = tl.load(partial + sizes.splits * groups + row, mask=some, other=0.0)
    return mean, tl.sum(squares + FORM.group * count * apart * apart, 1)


@triton.jit(do_not_specialize=["images"])
def group_norm_kernel(
    inputs, partial, y, statistics, images, sizes, eps, SILU: tl.constexpr, FORM: tl.constexpr
):  # fmt: skip
    """Normalises one tile.

    Grid (images x bands, splits). Without partial the tile holds all pixels and gives the statistics itself; with it
    the partial results of all splits are merged. Stores y, and mean and 1 / std per group. Moves x and y once.
    """
    at, c, inside = place(tl.program_id(0), sizes, FORM)
    image, _, _, _, mask = at
    h = load_joined(inputs.x, inputs.skip, at, sizes, FORM)
    channels = sizes.channels_x + sizes.channels_skip
    shift = load_channel(inputs.channel_bias, image * channels + c, inside, 0.0)
    if partial is None:
        m = tile_sum(h, FORM) / (sizes.pixels * FORM.group) + group_sum(shift, FORM) / FORM.group
        d = centred(h, m - shift, mask, FORM)
        square = tile_sum(d * d, FORM)
    else:
        m, square = merged(partial, image, c, inside, sizes, FORM)
        d = h - (m - shift)[:, None]
    r = 1.0 / tl.sqrt(square / (sizes.pixels * FORM.group) + eps)
    leads = inside & (c % FORM.group == 0) & (tl.program_id(1) == 0)
    tl.store(statistics + image * (channels // FORM.group) + c // FORM.group, m, mask=leads)
    tl.store(statistics + (images + image) * (channels // FORM.group) + c // FORM.group, r, mask=leads)
    w = load_channel(inputs.weight, image * sizes.weight_stride + c, inside, 1.0)
    b = load_channel(inputs.bias, image * sizes.bias_stride + c, inside, 0.0)
    z = d * (r * w)[:, None] + b[:, None]
    if SILU:
        z = z * sigmoid(z, y.dtype.element_ty != tl.float32)
    store_tile(y, z, at, channels, sizes.pixels, FORM)


def group_norm_silu(x: Tensor, skip: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    """Launches the forward; the arguments are the op's."""
    *parameters, num_groups, eps, silu = rest
    a = Launch(FORWARD, x, skip, parameters, num_groups)
    y, statistics, partial = a.empty(a.channels), a.floats(2, x.shape[0], num_groups), a.partial()
    with torch.cuda.device_of(x):
        if partial is not None:
            launch(group_norm_moments_kernel, a.grid, a.inputs, partial, x.shape[0], a.sizes, FORM=a.form, **a.options)
        arguments = (a.inputs, partial, y, statistics, x.shape[0], a.sizes, eps)
        launch(group_norm_kernel, a.grid, *arguments, SILU=silu, FORM=a.form, **a.options)
    return y, statistics
