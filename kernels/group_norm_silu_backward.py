"""The gradients of group normalisation and SiLU; see _group_norm_tiles.py."""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._group_norm_tiles import (
    BACKWARD,
    Launch,
    centred,
    chosen,
    group_sum,
    load_channel,
    load_joined,
    load_tile,
    parts,
    place,
    sigmoid,
    store_tile,
    tile_sum,
)
from ._launch import launch


class Gradients(NamedTuple):
    """What the backward writes, and what it adds before."""

    dx: Tensor | None  # nothing, if this launch only writes partial sums
    dskip: Tensor | None
    sums: Tensor | None  # (3, images, channels), if the parameters get gradients: of dh, dz n and dz over the pixels
    dchannel_bias: Tensor | None  # (images, splits, channels): the first of these sums, over a split
    added: Tensor | None
    added_skip: Tensor | None


@triton.jit
def store_sum(y, tile, added, at, channels, pixels, FORM: tl.constexpr):
    """Writes a tile, plus that of another tensor if there is one, to y."""
    if added is not None:
        tile += load_tile(added, at, channels, pixels, FORM)
    store_tile(y, tile, at, channels, pixels, FORM)


@triton.jit
def store_joined(gradients, d, at, sizes, FORM: tl.constexpr):
    """Writes d, the values of a tile, to dx, continued by dskip over channels, plus what is added to each."""
    if gradients.dskip is None:
        store_sum(gradients.dx, d, gradients.added, at, sizes.channels_x, sizes.pixels, FORM)
    elif FORM.aligned:
        one, channels, inside = chosen(gradients.dx, gradients.dskip, at, sizes)
        if gradients.added is not None:
            other, _, _ = chosen(gradients.added, gradients.added_skip, at, sizes)
            d += load_tile(other, inside, channels, sizes.pixels, FORM)
        store_tile(one, d, inside, channels, sizes.pixels, FORM)
    else:
        in_x, in_skip = parts(at, sizes)
        store_sum(gradients.dx, d, gradients.added, in_x, sizes.channels_x, sizes.pixels, FORM)
        store_sum(gradients.dskip, d, gradients.added_skip, in_skip, sizes.channels_skip, sizes.pixels, FORM)


@triton.jit
def unit_sum(tile, LEARNED: tl.constexpr, FORM: tl.constexpr):
    """Sums a tile over pixels, per channel if LEARNED, whose parameters want that, else over groups too."""
    return tl.sum(tile, 1) if LEARNED else tile_sum(tile, FORM)


@triton.jit
def backward_tile(
    grad, inputs, statistics, partial, gradients, tile, images, sizes,
    SILU: tl.constexpr, LEARNED: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """Does what group_norm_backward_kernel says, for one tile."""
    at, c, inside = place(tile, sizes, FORM)
    image, _, _, _, mask = at
    channels = sizes.channels_x + sizes.channels_skip
    h = load_joined(inputs.x, inputs.skip, at, sizes, FORM)
    dz = load_tile(grad, at, channels, sizes.pixels, FORM)
    groups = channels // FORM.group
    m = tl.load(statistics + image * groups + c // FORM.group, mask=inside, other=0.0)
    r = tl.load(statistics + (images + image) * groups + c // FORM.group, mask=inside, other=0.0)
    shift = load_channel(inputs.channel_bias, image * channels + c, inside, 0.0)
    w = load_channel(inputs.weight, image * sizes.weight_stride + c, inside, 1.0)
    b = load_channel(inputs.bias, image * sizes.bias_stride + c, inside, 0.0)
    d = centred(h, m - shift, mask, FORM)  # n = d r
    if SILU:
        z = d * (r * w)[:, None] + b[:, None]
        s = sigmoid(z, grad.dtype.element_ty != tl.float32)
        dz = dz * (s * (1.0 + z * (1.0 - s)))
    u = dz if LEARNED else dz * w[:, None]
    row = (2 * image * sizes.splits + tl.program_id(1)) * channels + c
    if gradients.dx is None:
        tl.store(partial + row, unit_sum(u, LEARNED, FORM), mask=inside)
        tl.store(partial + sizes.splits * channels + row, unit_sum(u * d, LEARNED, FORM), mask=inside)
    else:
        if partial is None:
            sum_u, sum_un = unit_sum(u, LEARNED, FORM), unit_sum(u * d, LEARNED, FORM) * r
        else:
            i = tl.arange(0, FORM.block_s)
            rows = (2 * image * sizes.splits + i[None, :]) * channels + c[:, None]
            some = inside[:, None] & (i < sizes.splits)[None, :]
            sum_u = tl.sum(tl.load(partial + rows, mask=some, other=0.0), 1)
            sum_un = tl.sum(tl.load(partial + sizes.splits * channels + rows, mask=some, other=0.0), 1) * r
        if LEARNED:
            leads = inside & (tl.program_id(1) == 0)
            tl.store(gradients.sums + (images + image) * channels + c, sum_un, mask=leads)
            tl.store(gradients.sums + (2 * images + image) * channels + c, sum_u, mask=leads)
            u, sum_u, sum_un = u * w[:, None], group_sum(w * sum_u, FORM), group_sum(w * sum_un, FORM)
        count = sizes.pixels * FORM.group
        c0, c1 = r * sum_u / count, r * r * sum_un / count
        dh = u * r[:, None] - c0[:, None] - d * c1[:, None]
        store_joined(gradients, dh, at, sizes, FORM)
        if LEARNED:
            row = (image * sizes.splits + tl.program_id(1)) * channels + c
            tl.store(gradients.dchannel_bias + row, tl.sum(tl.where(mask, dh, 0.0), 1), mask=inside)


@triton.jit(do_not_specialize=["images"])
def group_norm_backward_kernel(
    grad, inputs, statistics, partial, gradients, images, sizes,
    SILU: tl.constexpr, LEARNED: tl.constexpr, STAGES: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """Writes dx = (w dz - mean_g(w dz) - n mean_g(w dz n)) / std + added of tiles, and the parameters' gradients.

    Grid (images x bands, splits); with STAGES fewer programs in the first direction, which load a tile while they
    compute the one before. z = n w + b is recomputed from x. Without partial a tile holds all pixels. With it there are
    two launches: without dx the sums of w dz and w dz n / r over a split go to partial (images, 2, splits, channels),
    then dx comes from these. If LEARNED, sums are per channel, of dz and dz n. Moves x, grad and dx once, x and grad
    once more if split.
    """
    if STAGES == 1:
        tile = tl.program_id(0)
        backward_tile(grad, inputs, statistics, partial, gradients, tile, images, sizes, SILU, LEARNED, FORM)
    else:
        tiles = images * tl.cdiv(sizes.channels_x + sizes.channels_skip, FORM.band)
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), num_stages=STAGES):
            backward_tile(grad, inputs, statistics, partial, gradients, tile, images, sizes, SILU, LEARNED, FORM)


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
    inputs = (a.dense(grad), a.inputs, statistics.contiguous(), a.partial())
    dx, dskip = a.empty(x.shape[1]), None if skip is None else a.empty(skip.shape[1])
    shape = (x.shape[0], a.splits, a.channels)
    sums, shift = (a.floats(3, *shape[::2]), a.floats(*shape)) if wanted else (None, None)
    most = a.grid[0] if a.options["STAGES"] == 1 else multiprocessors(x.device)
    grid = (min(a.grid[0], most), a.grid[1])
    gradients = Gradients(dx, dskip, sums, shift, a.dense(added), a.dense(added_skip))
    options = {"SILU": silu, "LEARNED": wanted, "FORM": a.form, **a.options}
    nothing = Gradients(*[None] * 6)
    with torch.cuda.device_of(x):
        for results in (nothing, gradients) if a.splits > 1 else (gradients,):
            launch(group_norm_backward_kernel, grid, *inputs, results, x.shape[0], a.sizes, **options)
    if sums is not None and shift is not None:
        torch.sum(shift, 1, out=sums[0])
    return dx, x.new_empty(0) if dskip is None else dskip, statistics.new_empty(0) if sums is None else sums
