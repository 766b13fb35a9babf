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

from ._tuned import tuned

MAX_TILE, PER_WARP = 16384, 512  # elements of a tile, and of a warp's share: 16 of a thread


@triton.jit
def load_tile(x, image, c, p, mask, channels, pixels, LAST: tl.constexpr):
    """Reads a tile of x as float32; zero outside the mask."""
    offset = p * channels + c if LAST else c * pixels + p
    return tl.load(x + image * channels * pixels + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def chosen(x, skip, channels_x, channels_skip, BAND: tl.constexpr):
    """Returns the tensor that this program's band lies in, its channels, and those before it."""
    first = tl.program_id(0) % tl.cdiv(channels_x + channels_skip, BAND) * BAND
    behind = first >= channels_x
    before = tl.where(behind, channels_x, 0)
    return tl.where(behind, skip, x), tl.where(behind, channels_skip, channels_x), before


@triton.jit
def load_joined(
    x, skip, image, c, p, mask, channels_x, channels_skip, pixels,
    LAST: tl.constexpr, BAND: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Reads a tile of x continued by skip over channels; ALIGNED says that no band lies in both."""
    if skip is None:
        tile = load_tile(x, image, c, p, mask, channels_x, pixels, LAST)
    elif ALIGNED:
        one, channels, before = chosen(x, skip, channels_x, channels_skip, BAND)
        tile = load_tile(one, image, c - before, p, mask, channels, pixels, LAST)
    else:
        tile = load_tile(x, image, c, p, mask & (c < channels_x), channels_x, pixels, LAST)
        c -= channels_x
        tile += load_tile(skip, image, c, p, mask & (c >= 0), channels_skip, pixels, LAST)
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
    LAST: tl.constexpr, BAND: tl.constexpr, ALIGNED: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Writes mean and centred sum of squares of each channel over one split.

    Grid (images x bands, splits). partial is (images, 2, splits, channels). Reads x once.
    """
    channels = channels_x + channels_skip
    image, c, inside, p, mask = place(channels, pixels, BAND, BLOCK_C, BLOCK_P)
    count = tl.minimum(pixels - tl.program_id(1) * BLOCK_P, BLOCK_P)
    h = load_joined(
        x, skip, image, c[:, None], p[None, :], mask, channels_x, channels_skip, pixels, LAST, BAND, ALIGNED
    )  # fmt: skip
    mean = tl.sum(h, 1) / count
    d = tl.where(mask, h - mean[:, None], 0.0)
    row = (2 * image * splits + tl.program_id(1)) * channels + c
    tl.store(partial + row, mean, mask=inside)
    tl.store(partial + splits * channels + row, tl.sum(d * d, 1), mask=inside)


@triton.jit(do_not_specialize=["images"])
def group_norm_kernel(
    x, skip, channel_bias, weight, bias, partial, y, statistics,
    images, channels_x, channels_skip, pixels, splits, weight_stride, bias_stride, eps,
    SILU: tl.constexpr, LAST: tl.constexpr, GROUP: tl.constexpr, BAND: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Normalises one tile.

    Grid (images x bands, splits). Without partial the tile holds all pixels and gives the statistics itself; with it
    the partial results of all splits are merged. Stores y, and mean and 1 / std per group. Moves x and y once.
    """
    channels = channels_x + channels_skip
    image, c, inside, p, mask = place(channels, pixels, BAND, BLOCK_C, BLOCK_P)
    h = load_joined(
        x, skip, image, c[:, None], p[None, :], mask, channels_x, channels_skip, pixels, LAST, BAND, ALIGNED
    )  # fmt: skip
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


def memory_format(x: Tensor) -> torch.memory_format:
    """Returns channels_last if x is that and not contiguous too."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim(), torch.contiguous_format)
    return last if not x.is_contiguous() and x.is_contiguous(memory_format=last) else torch.contiguous_format


def configure(
    kernel: str, x: Tensor, joined: bool, channels: int, group: int, pixels: int, whole: bool = True
) -> tuple[dict[str, int], int]:
    """Returns the tile as keyword arguments of the kernels, and the number of splits.

    A thread holds 32 elements of a tile; half as many of two tensors where a band lies in both or the parameters'
    gradients are wanted (not `whole`), and half again where an image is split, since then nothing is lost by smaller
    tiles: more spills registers on one architecture or another.
    """
    last = memory_format(x) != torch.contiguous_format
    wanted = 32 // x.element_size() if last else min(1024 // triton.next_power_of_2(pixels), 64)
    band = group * min(triton.cdiv(max(wanted, 1), group), channels // group)
    block_c, block_p = triton.next_power_of_2(band), triton.next_power_of_2(pixels)
    aligned = joined and x.shape[1] % band == 0
    limit = MAX_TILE if not joined or (aligned and whole) else MAX_TILE // 2
    sizes = (x.element_size(), last, joined + aligned, channels, group, pixels, whole)
    limit, per_warp = tuned(kernel, x, sizes, (limit, PER_WARP))
    block_p = block_p if block_c * block_p <= limit else max(limit // 2 // block_c, 1)
    warps = min(max(block_c * block_p // per_warp, 1), 16)
    tile = {"LAST": last, "BAND": band, "ALIGNED": aligned, "BLOCK_C": block_c, "BLOCK_P": block_p, "num_warps": warps}
    return tile, triton.cdiv(pixels, block_p)


class Launch:
    """The arguments that all kernels of one call share, with tensors dense in the memory format of x."""

    def __init__(
        self, kernel: str, x: Tensor, skip: Tensor | None, parameters: list[Any], num_groups: int, whole: bool = True
    ) -> None:
        self.layout = memory_format(x)
        self.x, self.skip = self.dense(x), self.dense(skip)
        self.parameters = [None if t is None else t.contiguous() for t in parameters]
        self.channels = x.shape[1] + (0 if skip is None else skip.shape[1])
        self.pixels, self.group = math.prod(x.shape[2:]), self.channels // num_groups
        self.tile, self.splits = configure(kernel, x, skip is not None, self.channels, self.group, self.pixels, whole)
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
    a = Launch("group_norm_silu", x, skip, parameters, num_groups)
    y, statistics, partial = a.empty(a.channels), a.floats(2, x.shape[0], num_groups), a.partial()
    with torch.cuda.device_of(x):
        if partial is not None:
            group_norm_moments_kernel[a.grid](a.x, a.skip, partial, *a.sizes, **a.tile)
        arguments = (a.x, a.skip, *a.parameters, partial, y, statistics, *a.sizes, *a.strides, eps)
        group_norm_kernel[a.grid](*arguments, SILU=silu, GROUP=a.group, BLOCK_S=a.block_s, **a.tile)
    return y, statistics
