"""The gradients of group normalisation and SiLU; see group_norm_silu.py."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .group_norm_silu import Launch, chosen, group_sum, load_channel, load_joined, load_tile, place, store_tile


@triton.jit
def store_sum(y, tile, added, image, c, p, mask, channels, pixels, LAST: tl.constexpr):
    """Writes a tile, plus that of another tensor if there is one, to y."""
    if added is not None:
        tile += load_tile(added, image, c, p, mask, channels, pixels, LAST)
    store_tile(y, tile, image, c, p, mask, channels, pixels, LAST)


@triton.jit
def store_joined(
    x, skip, added, added_skip, tile, image, c, p, mask, channels_x, channels_skip, pixels,
    LAST: tl.constexpr, BAND: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Writes a tile to x, continued by skip over channels, plus what is added to each."""
    if skip is None:
        store_sum(x, tile, added, image, c, p, mask, channels_x, pixels, LAST)
    elif ALIGNED:
        one, channels, before = chosen(x, skip, channels_x, channels_skip, BAND)
        if added is not None:
            other, _, _ = chosen(added, added_skip, channels_x, channels_skip, BAND)
            tile += load_tile(other, image, c - before, p, mask, channels, pixels, LAST)
        store_tile(one, tile, image, c - before, p, mask, channels, pixels, LAST)
    else:
        store_sum(x, tile, added, image, c, p, mask & (c < channels_x), channels_x, pixels, LAST)
        c -= channels_x
        store_sum(skip, tile, added_skip, image, c, p, mask & (c >= 0), channels_skip, pixels, LAST)


@triton.jit(do_not_specialize=["images"])
def group_norm_backward_kernel(
    grad, x, skip, channel_bias, weight, bias, statistics, added, added_skip, partial, dx, dskip, sums, dchannel_bias,
    images, channels_x, channels_skip, pixels, splits, weight_stride, bias_stride,
    SILU: tl.constexpr, LAST: tl.constexpr, GROUP: tl.constexpr, BAND: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Writes dx = (w dz - mean_g(w dz) - n mean_g(w dz n)) / std + added of one tile, and the parameters' gradients.

    Grid (images x bands, splits). z = n w + b is recomputed from x. Without partial the tile holds all pixels. With
    it there are two launches: without dx the sums of dz and dz n over a split go to partial (images, 2, splits,
    channels), then dx comes from these. sums is (3, images, channels): of dh, dz n and dz; the first is written as
    dchannel_bias (images, splits, channels). Moves x, grad and dx once, x and grad once more if split.
    """
    channels = channels_x + channels_skip
    image, c, inside, p, mask = place(channels, pixels, BAND, BLOCK_C, BLOCK_P)
    h = load_joined(
        x, skip, image, c[:, None], p[None, :], mask, channels_x, channels_skip, pixels, LAST, BAND, ALIGNED
    )  # fmt: skip
    dz = load_tile(grad, image, c[:, None], p[None, :], mask, channels, pixels, LAST)
    m = tl.load(statistics + image * (channels // GROUP) + c // GROUP, mask=inside, other=0.0)
    r = tl.load(statistics + (images + image) * (channels // GROUP) + c // GROUP, mask=inside, other=0.0)
    shift = load_channel(channel_bias, image * channels + c, inside, 0.0)
    w = load_channel(weight, image * weight_stride + c, inside, 1.0)
    b = load_channel(bias, image * bias_stride + c, inside, 0.0)
    n = ((h + shift[:, None]) - m[:, None]) * r[:, None]
    if SILU:
        z = n * w[:, None] + b[:, None]
        s = tl.sigmoid(z)
        dz = dz * s * (1.0 + z * (1.0 - s))
    if dx is None:
        row = (2 * image * splits + tl.program_id(1)) * channels + c
        tl.store(partial + row, tl.sum(dz, 1), mask=inside)
        tl.store(partial + splits * channels + row, tl.sum(dz * n, 1), mask=inside)
    else:
        if partial is None:
            sum_dz, sum_dzn = tl.sum(dz, 1), tl.sum(dz * n, 1)
        else:
            i = tl.arange(0, BLOCK_S)
            row = (2 * image * splits + i[None, :]) * channels + c[:, None]
            some = inside[:, None] & (i < splits)[None, :]
            sum_dz = tl.sum(tl.load(partial + row, mask=some, other=0.0), 1)
            sum_dzn = tl.sum(tl.load(partial + splits * channels + row, mask=some, other=0.0), 1)
        c0 = group_sum(w * sum_dz, GROUP, BAND) / (pixels * GROUP)
        c1 = group_sum(w * sum_dzn, GROUP, BAND) / (pixels * GROUP)
        d = (dz * w[:, None] - c0[:, None] - n * c1[:, None]) * r[:, None]
        store_joined(
            dx, dskip, added, added_skip, d, image, c[:, None], p[None, :], mask, channels_x, channels_skip, pixels,
            LAST, BAND, ALIGNED,
        )  # fmt: skip
        if sums is not None:
            first = inside & (tl.program_id(1) == 0)
            tl.store(sums + (images + image) * channels + c, sum_dzn, mask=first)
            tl.store(sums + (2 * images + image) * channels + c, sum_dz, mask=first)
            row = (image * splits + tl.program_id(1)) * channels + c
            tl.store(dchannel_bias + row, tl.sum(tl.where(mask, d, 0.0), 1), mask=inside)


def group_norm_silu_backward(grad: Tensor, x: Tensor, skip: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Launches the backward; the arguments are the op's."""
    *parameters, statistics, num_groups, silu, wanted, added, added_skip = rest
    if skip is not None and (added is None) != (added_skip is None):  # the kernel adds to both or to none
        added = torch.zeros_like(x) if added is None else added
        added_skip = torch.zeros_like(skip) if added_skip is None else added_skip
    a = Launch("group_norm_silu_backward", x, skip, parameters, num_groups, whole=not wanted)
    inputs = (a.dense(grad), a.x, a.skip, *a.parameters, statistics, a.dense(added), a.dense(added_skip), a.partial())
    dx, dskip = a.empty(x.shape[1]), None if skip is None else a.empty(skip.shape[1])
    shape = (x.shape[0], a.splits, a.channels)
    sums, shift = (a.floats(3, *shape[::2]), a.floats(*shape)) if wanted else (None, None)
    with torch.cuda.device_of(x):
        for outputs in ((None,) * 4, (dx, dskip, sums, shift)):
            if a.splits > 1 or outputs[0] is not None:
                arguments = (*inputs, *outputs, *a.sizes, *a.strides)
                group_norm_backward_kernel[a.grid](*arguments, SILU=silu, GROUP=a.group, BLOCK_S=a.block_s, **a.tile)
    if sums is not None and shift is not None:
        torch.sum(shift, 1, out=sums[0])
    return dx, x.new_empty(0) if dskip is None else dskip, statistics.new_empty(0) if sums is None else sums
