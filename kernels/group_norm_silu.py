"""Group normalisation, SiLU and their gradients, for contiguous and channels_last tensors.

A tile is (channels, pixels) of one image: a band of whole groups, wide enough for 32-byte loads when channels are
innermost. If all pixels of a band fit a tile, one program normalises it with one read and one write; else the image is
split over pixels, a first kernel writes a partial result per split and channel, and every program of the second merges
them. No atomics: the same input gives the same bits.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_TILE = 16384  # elements, of 512 threads


@triton.jit
def load_tile(x, skip, image, c, p, mask, channels_x, channels_skip, pixels, LAST: tl.constexpr):
    """Reads a tile of x continued by skip over channels, as float32; zero outside the mask."""
    if skip is None:
        offset = p * channels_x + c if LAST else c * pixels + p
        tile = tl.load(x + image * channels_x * pixels + offset, mask=mask, other=0.0).to(tl.float32)
    else:
        first = load_tile(x, None, image, c, p, mask & (c < channels_x), channels_x, 0, pixels, LAST)
        c -= channels_x
        tile = first + load_tile(skip, None, image, c, p, mask & (c >= 0), channels_skip, 0, pixels, LAST)
    return tile


@triton.jit
def store_tile(y, tile, image, c, p, mask, channels, pixels, LAST: tl.constexpr):
    """Writes a tile to y, in its dtype."""
    offset = p * channels + c if LAST else c * pixels + p
    tl.store(y + image * channels * pixels + offset, tile.to(y.dtype.element_ty), mask=mask)


@triton.jit
def load_channel(pointer, offset, mask, otherwise: tl.constexpr):
    """Reads one parameter per channel, or its default where there is none."""
    if pointer is None:
        values = tl.full(mask.shape, otherwise, tl.float32)
    else:
        values = tl.load(pointer + offset, mask=mask, other=otherwise).to(tl.float32)
    return values


@triton.jit
def group_sum(v, GROUP: tl.constexpr, BAND: tl.constexpr):
    """Gives every channel of a band the sum of v over its group."""
    if GROUP == BAND:
        total = tl.zeros_like(v) + tl.sum(v, 0)
    else:
        i = tl.arange(0, v.shape[0])
        together = (i[:, None] // GROUP) == (i[None, :] // GROUP)
        total = tl.sum(tl.where(together, v[None, :], 0.0), 1)
    return total


@triton.jit
def group_statistics(mean, square, shift, inside, pixels, eps, GROUP: tl.constexpr, BAND: tl.constexpr):
    """Merges means and centred sums of squares of channels into mean and 1 / std of their groups."""
    centre = tl.where(inside, mean + shift, 0.0)
    group_mean = group_sum(centre, GROUP, BAND) / GROUP
    delta = tl.where(inside, centre - group_mean, 0.0)
    variance = group_sum(square / pixels + delta * delta, GROUP, BAND) / GROUP
    return group_mean, 1.0 / tl.sqrt(variance + eps)


@triton.jit
def place(channels, pixels, BAND: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Returns this program's image, channels, whether they are inside the band, pixels, and the mask of the tile."""
    bands = tl.cdiv(channels, BAND)
    image = (tl.program_id(0) // bands).to(tl.int64)
    i = tl.arange(0, BLOCK_C)
    c = tl.program_id(0) % bands * BAND + i
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (i < BAND) & (c < channels)
    return image, c, inside, p, inside[:, None] & (p < pixels)[None, :]


@triton.jit(do_not_specialize=["images"])
def group_norm_moments_kernel(
    x, skip, partial, images, channels_x, channels_skip, pixels, splits,
    LAST: tl.constexpr, BAND: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Writes mean and centred sum of squares of each channel over one split.

    Grid (images x bands, splits). partial is (images, 2, splits, channels). Reads x once.
    """
    channels = channels_x + channels_skip
    image, c, inside, p, mask = place(channels, pixels, BAND, BLOCK_C, BLOCK_P)
    count = tl.minimum(pixels - tl.program_id(1) * BLOCK_P, BLOCK_P)
    h = load_tile(x, skip, image, c[:, None], p[None, :], mask, channels_x, channels_skip, pixels, LAST)
    mean = tl.sum(h, 1) / count
    d = tl.where(mask, h - mean[:, None], 0.0)
    row = (2 * image * splits + tl.program_id(1)) * channels + c
    tl.store(partial + row, mean, mask=inside)
    tl.store(partial + splits * channels + row, tl.sum(d * d, 1), mask=inside)


@triton.jit(do_not_specialize=["images"])
def group_norm_kernel(
    x, skip, channel_bias, weight, bias, partial, y, statistics,
    images, channels_x, channels_skip, pixels, splits, weight_stride, bias_stride, eps,
    SILU: tl.constexpr, LAST: tl.constexpr, GROUP: tl.constexpr, BAND: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Normalises one tile.

    Grid (images x bands, splits). Without partial the tile holds all pixels and gives the statistics itself; with it
    the partial results of all splits are merged. Stores y, and mean and 1 / std per group. Moves x and y once.
    """
    channels = channels_x + channels_skip
    image, c, inside, p, mask = place(channels, pixels, BAND, BLOCK_C, BLOCK_P)
    h = load_tile(x, skip, image, c[:, None], p[None, :], mask, channels_x, channels_skip, pixels, LAST)
    if partial is None:
        average = tl.sum(h, 1) / pixels
        d = tl.where(mask, h - average[:, None], 0.0)
        square = tl.sum(d * d, 1)
    else:
        s = tl.arange(0, BLOCK_S)
        row = (2 * image * splits + s[None, :]) * channels + c[:, None]
        some = inside[:, None] & (s < splits)[None, :]
        count = tl.maximum(tl.minimum(pixels - s * BLOCK_P, BLOCK_P), 0)[None, :].to(tl.float32)
        means = tl.load(partial + row, mask=some, other=0.0)
        average = tl.sum(means * count, 1) / pixels
        d = tl.where(some, means - average[:, None], 0.0)
        square = tl.sum(tl.load(partial + splits * channels + row, mask=some, other=0.0) + count * d * d, 1)
    shift = load_channel(channel_bias, image * channels + c, inside, 0.0)
    m, r = group_statistics(average, square, shift, inside, pixels, eps, GROUP, BAND)
    first = inside & (c % GROUP == 0) & (tl.program_id(1) == 0)
    tl.store(statistics + image * (channels // GROUP) + c // GROUP, m, mask=first)
    tl.store(statistics + (images + image) * (channels // GROUP) + c // GROUP, r, mask=first)
    w = load_channel(weight, image * weight_stride + c, inside, 1.0)
    b = load_channel(bias, image * bias_stride + c, inside, 0.0)
    z = ((h + shift[:, None]) - m[:, None]) * (r * w)[:, None] + b[:, None]
    if SILU:
        z = z * tl.sigmoid(z)
    store_tile(y, z, image, c[:, None], p[None, :], mask, channels, pixels, LAST)


@triton.jit(do_not_specialize=["images"])
def group_norm_backward_kernel(
    grad, x, skip, channel_bias, weight, bias, statistics, partial, dx, dskip, sums, dchannel_bias,
    images, channels_x, channels_skip, pixels, splits, weight_stride, bias_stride,
    SILU: tl.constexpr, LAST: tl.constexpr, GROUP: tl.constexpr, BAND: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Writes dx = (w dz - mean_g(w dz) - n mean_g(w dz n)) / std of one tile, and the gradients to the parameters.

    Grid (images x bands, splits). z = n w + b is recomputed from x. Without partial the tile holds all pixels. With
    it there are two launches: without dx the sums of dz and dz n over a split go to partial (images, 2, splits,
    channels), then dx comes from these. sums is (3, images, channels): of dh, dz n and dz; the first is written as
    dchannel_bias (images, splits, channels). Moves x, grad and dx once, x and grad once more if split.
    """
    channels = channels_x + channels_skip
    image, c, inside, p, mask = place(channels, pixels, BAND, BLOCK_C, BLOCK_P)
    h = load_tile(x, skip, image, c[:, None], p[None, :], mask, channels_x, channels_skip, pixels, LAST)
    dz = load_tile(grad, None, image, c[:, None], p[None, :], mask, channels, 0, pixels, LAST)
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
        store_tile(dx, d, image, c[:, None], p[None, :], mask & (c < channels_x)[:, None], channels_x, pixels, LAST)
        if dskip is not None:
            behind = mask & (c >= channels_x)[:, None]
            store_tile(dskip, d, image, c[:, None] - channels_x, p[None, :], behind, channels_skip, pixels, LAST)
        if sums is not None:
            first = inside & (tl.program_id(1) == 0)
            tl.store(sums + (images + image) * channels + c, sum_dzn, mask=first)
            tl.store(sums + (2 * images + image) * channels + c, sum_dz, mask=first)
            row = (image * splits + tl.program_id(1)) * channels + c
            tl.store(dchannel_bias + row, tl.sum(tl.where(mask, d, 0.0), 1), mask=inside)


def memory_format(x: Tensor) -> torch.memory_format:
    """Returns channels_last if x is that and not contiguous too."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim(), torch.contiguous_format)
    return last if not x.is_contiguous() and x.is_contiguous(memory_format=last) else torch.contiguous_format


def configure(x: Tensor, joined: bool, channels: int, group: int, pixels: int) -> tuple[dict[str, int], int]:
    """Returns the tile as keyword arguments of the kernels, and the number of splits.

    A thread holds 32 elements of a tile; half as many where two tensors are joined, and half again where an image is
    split, since then nothing is lost by smaller tiles: more spills registers on one architecture or another.
    """
    last = memory_format(x) != torch.contiguous_format
    wanted = 32 // x.element_size() if last else min(1024 // triton.next_power_of_2(pixels), 64)
    band = group * min(triton.cdiv(max(wanted, 1), group), channels // group)
    block_c, block_p = triton.next_power_of_2(band), triton.next_power_of_2(pixels)
    limit = MAX_TILE // 2 if joined else MAX_TILE
    block_p = block_p if block_c * block_p <= limit else max(limit // 2 // block_c, 1)
    warps = min(max(block_c * block_p // 512, 1), 16)
    tile = {"LAST": last, "BAND": band, "BLOCK_C": block_c, "BLOCK_P": block_p, "num_warps": warps}
    return tile, triton.cdiv(pixels, block_p)


class Launch:
    """The arguments that all kernels of one call share, with tensors dense in the memory format of x."""

    def __init__(self, x: Tensor, skip: Tensor | None, parameters: list[Any], num_groups: int) -> None:
        self.layout = memory_format(x)
        self.x, self.skip = self.dense(x), self.dense(skip)
        self.parameters = [None if t is None else t.contiguous() for t in parameters]
        self.channels = x.shape[1] + (0 if skip is None else skip.shape[1])
        self.pixels, self.group = math.prod(x.shape[2:]), self.channels // num_groups
        self.tile, self.splits = configure(x, skip is not None, self.channels, self.group, self.pixels)
        self.grid = (x.shape[0] * triton.cdiv(self.channels, self.tile["BAND"]), self.splits)
        self.sizes = (x.shape[0], x.shape[1], self.channels - x.shape[1], self.pixels, self.splits)
        self.strides = tuple(t.shape[1] if t is not None and t.dim() == 2 else 0 for t in parameters[1:])
        self.block_s = triton.next_power_of_2(self.splits)

    def dense(self, x: Any) -> Any:
        """Returns a tensor in the memory format of x."""
        return None if x is None else x.contiguous(memory_format=self.layout)

    def empty(self, channels: int) -> Tensor:
        """Returns a result with the format and dtype of x."""
        shape = (self.x.shape[0], channels, *self.x.shape[2:])
        return torch.empty(shape, dtype=self.x.dtype, device=self.x.device, memory_format=self.layout)

    def floats(self, *shape: int) -> Tensor:
        """Returns a float32 result."""
        return torch.empty(shape, dtype=torch.float32, device=self.x.device)

    def partial(self) -> Tensor | None:
        """Returns the memory for partial results, if the image is split."""
        return None if self.splits == 1 else self.floats(self.x.shape[0], 2, self.splits, self.channels)


def group_norm_silu(x: Tensor, skip: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    """Launches the forward; the arguments are the op's."""
    *parameters, num_groups, eps, silu = rest
    a = Launch(x, skip, parameters, num_groups)
    y, statistics, partial = a.empty(a.channels), a.floats(2, x.shape[0], num_groups), a.partial()
    with torch.cuda.device_of(x):
        if partial is not None:
            group_norm_moments_kernel[a.grid](a.x, a.skip, partial, *a.sizes, **a.tile)
        arguments = (a.x, a.skip, *a.parameters, partial, y, statistics, *a.sizes, *a.strides, eps)
        group_norm_kernel[a.grid](*arguments, SILU=silu, GROUP=a.group, BLOCK_S=a.block_s, **a.tile)
    return y, statistics


def group_norm_silu_backward(grad: Tensor, x: Tensor, skip: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Launches the backward; the arguments are the op's."""
    *others, statistics, num_groups, silu, wanted = rest
    (added, added_skip), parameters = others[:2], others[2:]
    a = Launch(x, skip, parameters, num_groups)
    inputs = (a.dense(grad), a.x, a.skip, *a.parameters, statistics, a.partial())
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
    for result, other in ((dx, added), (dskip, added_skip)):
        if result is not None and other is not None:
            result.add_(other)
    return dx, x.new_empty(0) if dskip is None else dskip, statistics.new_empty(0) if sums is None else sums
