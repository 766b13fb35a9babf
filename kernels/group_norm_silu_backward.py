"""The gradients of group normalisation and SiLU; see group_norm_silu.py."""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import launch
from .group_norm_silu import (
    BACKWARD,
    Launch,
    centred,
    chosen,
    group_sum,
    load_channel,
    load_joined,
    load_tile,
    place,
    sigmoid,
    store_tile,
    tile_sum,
)


@triton.jit
def store_sum(y, tile, added, image, c, p, mask, channels, pixels, LAST: tl.constexpr, EVEN: tl.constexpr):
    """Writes a tile, plus that of another tensor if there is one, to y."""
    if added is not None:
        tile += load_tile(added, image, c, p, mask, channels, pixels, LAST, EVEN)
    store_tile(y, tile, image, c, p, mask, channels, pixels, LAST, EVEN)


@triton.jit
def store_joined(
    x, skip, added, added_skip, d, tile, image, c, p, mask, channels_x, channels_skip, pixels,
    LAST: tl.constexpr, BAND: tl.constexpr, ALIGNED: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Writes d, the values of a tile, to x, continued by skip over channels, plus what is added to each."""
    if skip is None:
        store_sum(x, d, added, image, c, p, mask, channels_x, pixels, LAST, EVEN)
    elif ALIGNED:
        one, channels, before = chosen(x, skip, tile, channels_x, channels_skip, BAND)
        if added is not None:
            other, _, _ = chosen(added, added_skip, tile, channels_x, channels_skip, BAND)
            d += load_tile(other, image, c - before, p, mask, channels, pixels, LAST, EVEN)
        store_tile(one, d, image, c - before, p, mask, channels, pixels, LAST, EVEN)
    else:
        store_sum(x, d, added, image, c, p, mask & (c < channels_x), channels_x, pixels, LAST, EVEN)
        c -= channels_x
        store_sum(skip, d, added_skip, image, c, p, mask & (c >= 0), channels_skip, pixels, LAST, EVEN)


@triton.jit
def unit_sum(tile, GROUP: tl.constexpr, BAND: tl.constexpr, LEARNED: tl.constexpr):
    """Sums a tile over pixels, per channel if LEARNED, whose parameters want that, else over groups too."""
    return tl.sum(tile, 1) if LEARNED else tile_sum(tile, GROUP, BAND)


@triton.jit
def backward_tile(
    grad, x, skip, channel_bias, weight, bias, statistics, added, added_skip, partial, dx, dskip, sums, dchannel_bias,
    tile, images, channels_x, channels_skip, pixels, splits, weight_stride, bias_stride,
    SILU: tl.constexpr, LEARNED: tl.constexpr, LAST: tl.constexpr, GROUP: tl.constexpr, BAND: tl.constexpr,
    ALIGNED: tl.constexpr, EVEN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Does what group_norm_backward_kernel says, for one tile."""
    channels = channels_x + channels_skip
    image, c, inside, p, mask = place(tile, channels, pixels, BAND, BLOCK_C, BLOCK_P)
    h = load_joined(
        x, skip, tile, image, c[:, None], p[None, :], mask, channels_x, channels_skip, pixels, LAST, BAND, ALIGNED, EVEN
    )  # fmt: skip
    dz = load_tile(grad, image, c[:, None], p[None, :], mask, channels, pixels, LAST, EVEN)
    m = tl.load(statistics + image * (channels // GROUP) + c // GROUP, mask=inside, other=0.0)
    r = tl.load(statistics + (images + image) * (channels // GROUP) + c // GROUP, mask=inside, other=0.0)
    shift = load_channel(channel_bias, image * channels + c, inside, 0.0)
    w = load_channel(weight, image * weight_stride + c, inside, 1.0)
    b = load_channel(bias, image * bias_stride + c, inside, 0.0)
    d = centred(h, m - shift, mask, EVEN)  # n = d r
    if SILU:
        z = d * (r * w)[:, None] + b[:, None]
        s = sigmoid(z, grad.dtype.element_ty != tl.float32)
        dz = dz * (s * (1.0 + z * (1.0 - s)))
    u = dz if LEARNED else dz * w[:, None]
    row = (2 * image * splits + tl.program_id(1)) * channels + c
    if dx is None:
        tl.store(partial + row, unit_sum(u, GROUP, BAND, LEARNED), mask=inside)
        tl.store(partial + splits * channels + row, unit_sum(u * d, GROUP, BAND, LEARNED), mask=inside)
    else:
        if partial is None:
            sum_u, sum_un = unit_sum(u, GROUP, BAND, LEARNED), unit_sum(u * d, GROUP, BAND, LEARNED) * r
        else:
            i = tl.arange(0, BLOCK_S)
            rows = (2 * image * splits + i[None, :]) * channels + c[:, None]
            some = inside[:, None] & (i < splits)[None, :]
            sum_u = tl.sum(tl.load(partial + rows, mask=some, other=0.0), 1)
            sum_un = tl.sum(tl.load(partial + splits * channels + rows, mask=some, other=0.0), 1) * r
        if LEARNED:
            first = inside & (tl.program_id(1) == 0)
            tl.store(sums + (images + image) * channels + c, sum_un, mask=first)
            tl.store(sums + (2 * images + image) * channels + c, sum_u, mask=first)
            u, sum_u, sum_un = u * w[:, None], group_sum(w * sum_u, GROUP, BAND), group_sum(w * sum_un, GROUP, BAND)
        c0, c1 = r * sum_u / (pixels * GROUP), r * r * sum_un / (pixels * GROUP)
        dh = u * r[:, None] - c0[:, None] - d * c1[:, None]
        store_joined(
            dx, dskip, added, added_skip, dh, tile, image, c[:, None], p[None, :], mask, channels_x, channels_skip,
            pixels, LAST, BAND, ALIGNED, EVEN,
        )  # fmt: skip
        if LEARNED:
            row = (image * splits + tl.program_id(1)) * channels + c
            tl.store(dchannel_bias + row, tl.sum(tl.where(mask, dh, 0.0), 1), mask=inside)


@triton.jit(do_not_specialize=["images"])
def group_norm_backward_kernel(
    grad, x, skip, channel_bias, weight, bias, statistics, added, added_skip, partial, dx, dskip, sums, dchannel_bias,
    images, channels_x, channels_skip, pixels, splits, weight_stride, bias_stride,
    SILU: tl.constexpr, LEARNED: tl.constexpr, LAST: tl.constexpr, GROUP: tl.constexpr, BAND: tl.constexpr,
    ALIGNED: tl.constexpr, EVEN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Writes dx = (w dz - mean_g(w dz) - n mean_g(w dz n)) / std + added of tiles, and the parameters' gradients.

    Grid (images x bands, splits); with STAGES fewer programs in the first direction, which load a tile while they
    compute the one before. z = n w + b is recomputed from x. Without partial a tile holds all pixels. With it there are
    two launches: without dx the sums of w dz and w dz n / r over a split go to partial (images, 2, splits, channels),
    then dx comes from these. If LEARNED, sums are per channel, of dz and dz n, and go to sums (3, images, channels),
    behind those of dh, which are written as dchannel_bias (images, splits, channels). Moves x, grad and dx once, x and
    grad once more if split.
    """
    if STAGES == 1:
        backward_tile(
            grad, x, skip, channel_bias, weight, bias, statistics, added, added_skip, partial, dx, dskip, sums,
            dchannel_bias, tl.program_id(0), images, channels_x, channels_skip, pixels, splits, weight_stride,
            bias_stride, SILU, LEARNED, LAST, GROUP, BAND, ALIGNED, EVEN, BLOCK_C, BLOCK_P, BLOCK_S,
        )  # fmt: skip
    else:
        tiles = images * tl.cdiv(channels_x + channels_skip, BAND)
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES):
            backward_tile(
                grad, x, skip, channel_bias, weight, bias, statistics, added, added_skip, partial, dx, dskip, sums,
                dchannel_bias, tile, images, channels_x, channels_skip, pixels, splits, weight_stride, bias_stride,
                SILU, LEARNED, LAST, GROUP, BAND, ALIGNED, EVEN, BLOCK_C, BLOCK_P, BLOCK_S,
            )  # fmt: skip


@cache
def multiprocessors(device: torch.device) -> int:
    """Returns how many multiprocessors a GPU has; 1 for what is none, the interpreter and the compiler."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def group_norm_silu_backward(grad: Tensor, x: Tensor, skip: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Launches the backward; the arguments are the op's."""
    *parameters, statistics, num_groups, silu, wanted, added, added_skip = rest
    if skip is not None and (added is None) != (added_skip is None):  # the kernel adds to both or to none
        added = torch.zeros_like(x) if added is None else added
        added_skip = torch.zeros_like(skip) if added_skip is None else added_skip
    a = Launch(BACKWARD, x, skip, parameters, num_groups, whole=not wanted)
    features = (a.dense(added), a.dense(added_skip))
    inputs = (a.dense(grad), a.x, a.skip, *a.parameters, statistics.contiguous(), *features, a.partial())
    dx, dskip = a.empty(x.shape[1]), None if skip is None else a.empty(skip.shape[1])
    shape = (x.shape[0], a.splits, a.channels)
    sums, shift = (a.floats(3, *shape[::2]), a.floats(*shape)) if wanted else (None, None)
    most = a.grid[0] if a.tile["STAGES"] == 1 else multiprocessors(x.device)
    grid = (min(a.grid[0], most), a.grid[1])
    options = {"SILU": silu, "LEARNED": wanted, "BLOCK_S": a.block_s, **a.tile}
    with torch.cuda.device_of(x):
        for outputs in ((None,) * 4, (dx, dskip, sums, shift)):
            if a.splits > 1 or outputs[0] is not None:
                arguments = (*inputs, *outputs, *a.sizes, *a.strides)
                launch(group_norm_backward_kernel, grid, *arguments, **options)
    if sums is not None and shift is not None:
        torch.sum(shift, 1, out=sums[0])
    return dx, x.new_empty(0) if dskip is None else dskip, statistics.new_empty(0) if sums is None else sums
