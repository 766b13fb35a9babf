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

from ._launch import launch
from ._tuned import architecture, tuned

MAX_TILE, PER_WARP = 16384, 2048  # elements of a tile, and bytes of a warp's share
FORWARD, BACKWARD = "group_norm_silu", "group_norm_silu_backward"
# A multiprocessor that has one program at a time waits while that loads or stores. So two programs of the forward share
# its registers (64 elements and 128 registers a thread). The largest tiles of the backward leave none for a second
# program: where there is shared memory for two more tiles (sm_90, sm_100), it loads them itself while it computes. With
# room for one (STAGES 2) an H100 took longer than without.
MOST_WARPS = {FORWARD: 8, BACKWARD: 16}
LARGE = 32768  # bytes
PIPELINED = (90, 100)  # architectures


@triton.jit
def load_tile(x, image, c, p, mask, channels, pixels, LAST: tl.constexpr, EVEN: tl.constexpr):
    """Reads a tile of x as float32; zero outside the mask, unless EVEN says that nothing is."""
    address = x + image * channels * pixels + (p * channels + c if LAST else c * pixels + p)
    tile = tl.load(address) if EVEN else tl.load(address, mask=mask, other=0.0)
    return tile.to(tl.float32)


@triton.jit
def chosen(x, skip, tile, channels_x, channels_skip, BAND: tl.constexpr):
    """Returns the tensor that the band of a tile lies in, its channels, and those before it."""
    behind = tile % tl.cdiv(channels_x + channels_skip, BAND) * BAND >= channels_x
    before = tl.where(behind, channels_x, 0)
    return tl.where(behind, skip, x), tl.where(behind, channels_skip, channels_x), before


@triton.jit
def load_joined(
    x, skip, tile, image, c, p, mask, channels_x, channels_skip, pixels,
    LAST: tl.constexpr, BAND: tl.constexpr, ALIGNED: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Reads a tile of x continued by skip over channels; ALIGNED says that no band lies in both."""
    if skip is None:
        h = load_tile(x, image, c, p, mask, channels_x, pixels, LAST, EVEN)
    elif ALIGNED:
        one, channels, before = chosen(x, skip, tile, channels_x, channels_skip, BAND)
        h = load_tile(one, image, c - before, p, mask, channels, pixels, LAST, EVEN)
    else:
        h = load_tile(x, image, c, p, mask & (c < channels_x), channels_x, pixels, LAST, EVEN)
        c -= channels_x
        h += load_tile(skip, image, c, p, mask & (c >= 0), channels_skip, pixels, LAST, EVEN)
    return h


@triton.jit
def store_tile(y, tile, image, c, p, mask, channels, pixels, LAST: tl.constexpr, EVEN: tl.constexpr):
    """Writes a tile to y, in its dtype."""
    address = y + image * channels * pixels + (p * channels + c if LAST else c * pixels + p)
    tl.store(address, tile.to(y.dtype.element_ty), mask=None if EVEN else mask)


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
    elif GROUP & (GROUP - 1) == 0:
        total = spread(tl.sum(tl.reshape(v, (v.shape[0] // GROUP, GROUP)), 1), GROUP)
    else:
        i = tl.arange(0, v.shape[0])
        together = (i[:, None] // GROUP) == (i[None, :] // GROUP)
        total = tl.sum(tl.where(together, v[None, :], 0.0), 1)
    return total


@triton.jit
def spread(v, GROUP: tl.constexpr):
    """Gives every channel what v has for its group."""
    return tl.reshape(tl.broadcast_to(v[:, None], (v.shape[0], GROUP)), (v.shape[0] * GROUP,))


@triton.jit
def tile_sum(tile, GROUP: tl.constexpr, BAND: tl.constexpr):
    """Gives every channel of a band the sum of a tile over its group and pixels: a thread adds before threads do."""
    if GROUP == BAND:
        total = tl.zeros((tile.shape[0],), tl.float32) + tl.sum(tile)
    elif GROUP & (GROUP - 1) == 0:  # one axis after the other: Triton adds wrong lanes where those of a sum lie apart
        parts = tl.sum(tl.reshape(tile, (tile.shape[0] // GROUP, GROUP, tile.shape[1])), 1)
        total = spread(tl.sum(parts, 1), GROUP)
    else:
        total = group_sum(tl.sum(tile, 1), GROUP, BAND)
    return total


@triton.jit
def centred(tile, mean, mask, EVEN: tl.constexpr):
    """Returns a tile less a mean per channel, zero outside the mask; EVEN says that nothing is outside."""
    d = tile - mean[:, None]
    return d if EVEN else tl.where(mask, d, 0.0)


@triton.jit
def sigmoid(z, FAST: tl.constexpr):
    """1 / (1 + exp(-z)), by the two fastest instructions if FAST: to 2^-21, more than 16 bits can hold."""
    e = 1.0 + tl.exp2(z * -1.4426950408889634)
    if FAST:
        root = tl.rsqrt(e)
        s = root * root
    else:
        s = 1.0 / e
    return s


@triton.jit
def place(tile, channels, pixels, BAND: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Returns the image of a tile, channels, whether they are inside the band, pixels, and the mask of the tile."""
    bands = tl.cdiv(channels, BAND)
    image = (tile // bands).to(tl.int64)
    i = tl.arange(0, BLOCK_C)
    c = tile % bands * BAND + i
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (i < BAND) & (c < channels)
    return image, c, inside, p, inside[:, None] & (p < pixels)[None, :]


@triton.jit(do_not_specialize=["images"])
def group_norm_moments_kernel(
    x, skip, channel_bias, partial, images, channels_x, channels_skip, pixels, splits,
    LAST: tl.constexpr, GROUP: tl.constexpr, BAND: tl.constexpr, ALIGNED: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Writes mean and centred sum of squares of each group over one split.

    Grid (images x bands, splits). partial is (images, 2, splits, groups). Reads x once.
    """
    tile, channels = tl.program_id(0), channels_x + channels_skip
    image, c, inside, p, mask = place(tile, channels, pixels, BAND, BLOCK_C, BLOCK_P)
    count = tl.minimum(pixels - tl.program_id(1) * BLOCK_P, BLOCK_P)
    h = load_joined(
        x, skip, tile, image, c[:, None], p[None, :], mask, channels_x, channels_skip, pixels, LAST, BAND, ALIGNED, EVEN
    )  # fmt: skip
    shift = load_channel(channel_bias, image * channels + c, inside, 0.0)
    mean = tile_sum(h, GROUP, BAND) / (count * GROUP) + group_sum(shift, GROUP, BAND) / GROUP
    d = centred(h, mean - shift, mask, EVEN)
    groups, first = channels // GROUP, inside & (c % GROUP == 0)
    row = (2 * image * splits + tl.program_id(1)) * groups + c // GROUP
    tl.store(partial + row, mean, mask=first)
    tl.store(partial + splits * groups + row, tile_sum(d * d, GROUP, BAND), mask=first)


@triton.jit(do_not_specialize=["images"])
def group_norm_kernel(
    x, skip, channel_bias, weight, bias, partial, y, statistics,
    images, channels_x, channels_skip, pixels, splits, weight_stride, bias_stride, eps,
    SILU: tl.constexpr, LAST: tl.constexpr, GROUP: tl.constexpr, BAND: tl.constexpr, ALIGNED: tl.constexpr,
    EVEN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Normalises one tile.

    Grid (images x bands, splits). Without partial the tile holds all pixels and gives the statistics itself; with it
    the partial results of all splits are merged. Stores y, and mean and 1 / std per group. Moves x and y once.
    """
    tile, channels = tl.program_id(0), channels_x + channels_skip
    image, c, inside, p, mask = place(tile, channels, pixels, BAND, BLOCK_C, BLOCK_P)
    h = load_joined(
        x, skip, tile, image, c[:, None], p[None, :], mask, channels_x, channels_skip, pixels, LAST, BAND, ALIGNED, EVEN
    )  # fmt: skip
    shift = load_channel(channel_bias, image * channels + c, inside, 0.0)
    if partial is None:
        m = tile_sum(h, GROUP, BAND) / (pixels * GROUP) + group_sum(shift, GROUP, BAND) / GROUP
        d = centred(h, m - shift, mask, EVEN)
        square = tile_sum(d * d, GROUP, BAND)
    else:
        s = tl.arange(0, BLOCK_S)
        row = (2 * image * splits + s[None, :]) * (channels // GROUP) + (c // GROUP)[:, None]
        some = inside[:, None] & (s < splits)[None, :]
        count = tl.maximum(tl.minimum(pixels - s * BLOCK_P, BLOCK_P), 0)[None, :].to(tl.float32)
        means = tl.load(partial + row, mask=some, other=0.0)
        m = tl.sum(means * count, 1) / pixels
        apart = tl.where(some, means - m[:, None], 0.0)
        squares = tl.load(partial + splits * (channels // GROUP) + row, mask=some, other=0.0)
        square = tl.sum(squares + GROUP * count * apart * apart, 1)
        d = h - (m - shift)[:, None]
    r = 1.0 / tl.sqrt(square / (pixels * GROUP) + eps)
    first = inside & (c % GROUP == 0) & (tl.program_id(1) == 0)
    tl.store(statistics + image * (channels // GROUP) + c // GROUP, m, mask=first)
    tl.store(statistics + (images + image) * (channels // GROUP) + c // GROUP, r, mask=first)
    w = load_channel(weight, image * weight_stride + c, inside, 1.0)
    b = load_channel(bias, image * bias_stride + c, inside, 0.0)
    z = d * (r * w)[:, None] + b[:, None]
    if SILU:
        z = z * sigmoid(z, y.dtype.element_ty != tl.float32)
    store_tile(y, z, image, c[:, None], p[None, :], mask, channels, pixels, LAST, EVEN)


def memory_format(x: Tensor) -> torch.memory_format:
    """Returns channels_last if x is that and not contiguous too."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim(), torch.contiguous_format)
    return last if not x.is_contiguous() and x.is_contiguous(memory_format=last) else torch.contiguous_format


def configure(
    kernel: str, x: Tensor, joined: bool, channels: int, group: int, pixels: int, whole: bool = True
) -> tuple[dict[str, int], int]:
    """Returns the tile as keyword arguments of the kernels, and the number of splits.

    Where a band of channels lies in two tensors, both are read under a mask. Then tiles are half as large, for the
    registers, but those of whole images in 16 bits: an H100 was fastest when it read these once, and with few warps.
    """
    last = memory_format(x) != torch.contiguous_format
    wanted = 32 // x.element_size() if last else min(1024 // triton.next_power_of_2(pixels), 64)
    band = group * min(triton.cdiv(max(wanted, 1), group), channels // group)
    block_c, whole_image = triton.next_power_of_2(band), triton.next_power_of_2(pixels)
    aligned = joined and x.shape[1] % band == 0
    torn = joined and not aligned
    once = torn and kernel == FORWARD and x.element_size() == 2 and block_c * whole_image <= 2 * MAX_TILE
    limit = 2 * MAX_TILE if once else MAX_TILE // 2 if torn else MAX_TILE

    def rows(limit: int) -> int:
        return whole_image if block_c * whole_image <= limit else max(limit // 2 // block_c, 1)

    size = block_c * rows(limit) * x.element_size()
    warps = min(max(size // PER_WARP // (1 + once), 1), MOST_WARPS[kernel])
    stages = [] if kernel == FORWARD else [3 if size == LARGE and whole and architecture() in PIPELINED else 1]
    sizes = (x.element_size(), last, joined + aligned, channels, group, pixels, whole)
    limit, warps, *stages = tuned(kernel, x, sizes, (limit, warps, *stages))
    block_p = rows(limit)
    tile = {"LAST": last, "GROUP": group, "BAND": band, "ALIGNED": aligned, "BLOCK_C": block_c, "BLOCK_P": block_p}
    even = block_c == band and channels % band == 0 and pixels % block_p == 0 and joined == aligned
    full = block_c * block_p == 64 * 32 * warps and torch.version.hip is None
    options = {"num_warps": warps} | ({"maxnreg": 128} if full else {}) | ({"STAGES": stages[0]} if stages else {})
    return {**tile, "EVEN": even, **options}, triton.cdiv(pixels, block_p)


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
    a = Launch(FORWARD, x, skip, parameters, num_groups)
    y, statistics, partial = a.empty(a.channels), a.floats(2, x.shape[0], num_groups), a.partial()
    with torch.cuda.device_of(x):
        if partial is not None:
            launch(group_norm_moments_kernel, a.grid, a.x, a.skip, a.parameters[0], partial, *a.sizes, **a.tile)
        arguments = (a.x, a.skip, *a.parameters, partial, y, statistics, *a.sizes, *a.strides, eps)
        launch(group_norm_kernel, a.grid, *arguments, SILU=silu, BLOCK_S=a.block_s, **a.tile)
    return y, statistics
