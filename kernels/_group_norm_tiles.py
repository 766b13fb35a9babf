"""The tiles of group normalisation, which its forward and backward share, for contiguous and channels_last tensors.

A tile is (channels, pixels) of one image: a band of whole groups, wide enough for 32-byte loads when channels are
innermost. If all pixels of a band fit a tile, one program normalises it with one read and one write; else the image is
split over pixels, a first kernel writes a partial result per split and channel, and every program of the second merges
them. No atomics: the same input gives the same bits.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

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


class Inputs(NamedTuple):
    """What is normalised, and by what; see the op."""

    x: Tensor
    skip: Tensor | None
    channel_bias: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class Sizes(NamedTuple):
    """The sizes of a launch."""

    channels_x: int
    channels_skip: int
    pixels: int
    splits: int  # of an image, over its pixels
    weight_stride: int  # between images: 0 for one weight for all of them
    bias_stride: int


class Form(NamedTuple):
    """What the tiles of a launch look like."""

    last: bool  # whether channels are innermost in memory
    group: int  # channels of a group
    band: int  # channels of a tile that exist, whole groups
    block_c: int  # channels of a tile
    block_p: int  # pixels of a tile
    block_s: int  # splits, rounded up to a power of two
    aligned: bool  # whether no band lies in both of two joined tensors
    even: bool  # whether every tile is full, so that no mask is needed


@triton.jit
def load_tile(x, at, channels, pixels, FORM: tl.constexpr):
    """Reads a tile of x as float32; zero outside the mask."""
    image, _, c, p, mask = at
    address = x + image * channels * pixels + (p * channels + c if FORM.last else c * pixels + p)
    tile = tl.load(address) if FORM.even else tl.load(address, mask=mask, other=0.0)
    return tile.to(tl.float32)


@triton.jit
def store_tile(y, tile, at, channels, pixels, FORM: tl.constexpr):
    """Writes a tile to y, in its dtype."""
    image, _, c, p, mask = at
    address = y + image * channels * pixels + (p * channels + c if FORM.last else c * pixels + p)
    tl.store(address, tile.to(y.dtype.element_ty), mask=None if FORM.even else mask)


@triton.jit
def chosen(x, skip, at, sizes):
    """Returns which of two joined tensors a band lies in, its channels, and the place of the tile in it."""
    image, first, c, p, mask = at
    behind = first >= sizes.channels_x
    before = tl.where(behind, sizes.channels_x, 0)
    channels = tl.where(behind, sizes.channels_skip, sizes.channels_x)
    return tl.where(behind, skip, x), channels, (image, first, c - before, p, mask)


@triton.jit
def parts(at, sizes):
    """Returns the places of a tile in two joined tensors, both of which it may lie in."""
    image, first, c, p, mask = at
    behind = c - sizes.channels_x
    return (image, first, c, p, mask & (behind < 0)), (image, first, behind, p, mask & (behind >= 0))


@triton.jit
def load_joined(x, skip, at, sizes, FORM: tl.constexpr):
    """Reads a tile of x continued by skip over channels."""
    if skip is None:
        h = load_tile(x, at, sizes.channels_x, sizes.pixels, FORM)
    elif FORM.aligned:
        one, channels, inside = chosen(x, skip, at, sizes)
        h = load_tile(one, inside, channels, sizes.pixels, FORM)
    else:
        in_x, in_skip = parts(at, sizes)
        h = load_tile(x, in_x, sizes.channels_x, sizes.pixels, FORM)
        h += load_tile(skip, in_skip, sizes.channels_skip, sizes.pixels, FORM)
    return h


@triton.jit
def load_channel(pointer, offset, mask, otherwise: tl.constexpr):
    """Reads one parameter per channel, or its default where there is none."""
    if pointer is None:
        values = tl.full(mask.shape, otherwise, tl.float32)
    else:
        values = tl.load(pointer + offset, mask=mask, other=otherwise).to(tl.float32)
    return values


@triton.jit
def group_sum(v, FORM: tl.constexpr):
    """Gives every channel of a band the sum of v over its group."""
    if FORM.group == FORM.band:
        total = tl.zeros_like(v) + tl.sum(v, 0)
    elif FORM.group & (FORM.group - 1) == 0:
        total = spread(tl.sum(tl.reshape(v, (v.shape[0] // FORM.group, FORM.group)), 1), FORM)
    else:
        i = tl.arange(0, v.shape[0])
        together = (i[:, None] // FORM.group) == (i[None, :] // FORM.group)
        total = tl.sum(tl.where(together, v[None, :], 0.0), 1)
    return total


@triton.jit
def spread(v, FORM: tl.constexpr):
    """Gives every channel what v has for its group."""
    return tl.reshape(tl.broadcast_to(v[:, None], (v.shape[0], FORM.group)), (v.shape[0] * FORM.group,))


@triton.jit
def tile_sum(tile, FORM: tl.constexpr):
    """Gives every channel of a band the sum of a tile over its group and pixels: a thread adds before threads do."""
    if FORM.group == FORM.band:
        total = tl.zeros((tile.shape[0],), tl.float32) + tl.sum(tile)
    elif (
        FORM.group & (FORM.group - 1) == 0
    ):  # one axis after the other: Triton adds wrong lanes where those of a sum lie apart
        rows = tl.sum(tl.reshape(tile, (tile.shape[0] // FORM.group, FORM.group, tile.shape[1])), 1)
        total = spread(tl.sum(rows, 1), FORM)
    else:
        total = group_sum(tl.sum(tile, 1), FORM)
    return total


@triton.jit
def centred(tile, mean, mask, FORM: tl.constexpr):
    """Returns a tile less a mean per channel, zero outside the mask."""
    d = tile - mean[:, None]
    return d if FORM.even else tl.where(mask, d, 0.0)


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
def place(tile, sizes, FORM: tl.constexpr):
    """Returns where a tile is, its channels, and which of them exist.

    A place is (image, first channel, channels, pixels, which of these exist), the last three to be broadcast.
    """
    channels = sizes.channels_x + sizes.channels_skip
    bands = tl.cdiv(channels, FORM.band)
    image, first = (tile // bands).to(tl.int64), tile % bands * FORM.band
    i = tl.arange(0, FORM.block_c)
    c = first + i
    p = tl.program_id(1) * FORM.block_p + tl.arange(0, FORM.block_p)
    inside = (i < FORM.band) & (c < channels)
    return (image, first, c[:, None], p[None, :], inside[:, None] & (p < sizes.pixels)[None, :]), c, inside


def memory_format(x: Tensor) -> torch.memory_format:
    """Returns channels_last if x is that and not contiguous too."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim(), torch.contiguous_format)
    return last if not x.is_contiguous() and x.is_contiguous(memory_format=last) else torch.contiguous_format


def band_of(wanted: int, x: Tensor, joined: bool, channels: int, group: int) -> tuple[int, int, bool]:
    """Returns the channels of a band, the fewest whole groups with those wanted; of its tiles; if it is aligned."""
    band = group * min(triton.cdiv(max(wanted, 1), group), channels // group)
    return band, triton.next_power_of_2(band), joined and x.shape[1] % band == 0


def rows(limit: int, block_c: int, pixels: int) -> int:
    """Returns the pixels of a tile: those of a whole image if it has at most `limit` elements then."""
    whole_image: int = triton.next_power_of_2(pixels)
    return whole_image if block_c * whole_image <= limit else max(limit // 2 // block_c, 1)


def configure(
    kernel: str, x: Tensor, joined: bool, channels: int, group: int, pixels: int, whole: bool = True
) -> tuple[Form, dict[str, int]]:
    """Returns the form of the tiles, and options of the launch.

    Where a band of channels lies in two tensors, both are read under a mask. Then tiles are half as large, for the
    registers, but those of whole images in 16 bits: an H100 was fastest when it read these once, and with few warps.
    """
    last = memory_format(x) != torch.contiguous_format
    wanted = 32 // x.element_size() if last else min(1024 // triton.next_power_of_2(pixels), 64)
    band, block_c, aligned = band_of(wanted, x, joined, channels, group)
    torn = joined and not aligned
    once = torn and kernel == FORWARD and x.element_size() == 2 and rows(2 * MAX_TILE, block_c, pixels) >= pixels
    limit = 2 * MAX_TILE if once else MAX_TILE // 2 if torn else MAX_TILE
    size = block_c * rows(limit, block_c, pixels) * x.element_size()
    warps = min(max(size // PER_WARP // (1 + once), 1), MOST_WARPS[kernel])
    stages = [] if kernel == FORWARD else [3 if size == LARGE and whole and architecture() in PIPELINED else 1]
    sizes = (x.element_size(), last, joined + aligned, channels, group, pixels, whole)
    limit, warps, wanted, *stages = tuned(kernel, x, sizes, (limit, warps, wanted, *stages))
    band, block_c, aligned = band_of(wanted, x, joined, channels, group)
    block_p = rows(limit, block_c, pixels)
    even = block_c == band and channels % band == 0 and pixels % block_p == 0 and joined == aligned
    full = block_c * block_p == 64 * 32 * warps and torch.version.hip is None
    options = {"num_warps": warps} | ({"maxnreg": 128} if full else {}) | ({"STAGES": stages[0]} if stages else {})
    block_s = triton.next_power_of_2(triton.cdiv(pixels, block_p))
    return Form(last, group, band, block_c, block_p, block_s, aligned, even), options


class Launch:
    """The arguments that all kernels of one call share, with tensors dense in the memory format of x."""

    def __init__(
        self, kernel: str, x: Tensor, skip: Tensor | None, parameters: list[Any], num_groups: int, whole: bool = True
    ) -> None:
        self.layout = memory_format(x)
        own = [None if t is None else t.contiguous() for t in parameters]
        self.inputs = Inputs(self.dense(x), self.dense(skip), *own)
        self.channels, pixels = x.shape[1] + (0 if skip is None else skip.shape[1]), math.prod(x.shape[2:])
        group = self.channels // num_groups
        self.form, self.options = configure(kernel, x, skip is not None, self.channels, group, pixels, whole)
        self.splits = triton.cdiv(pixels, self.form.block_p)
        self.grid = (x.shape[0] * triton.cdiv(self.channels, self.form.band), self.splits)
        strides = (t.shape[1] if t is not None and t.dim() == 2 else 0 for t in parameters[1:])
        self.sizes = Sizes(x.shape[1], self.channels - x.shape[1], pixels, self.splits, *strides)

    def dense(self, x: Any) -> Any:
        """Returns a tensor in the memory format of x."""
        return None if x is None else x.contiguous(memory_format=self.layout)

    def empty(self, channels: int) -> Tensor:
        """Returns a result with the format and dtype of x."""
        x = self.inputs.x
        shape = (x.shape[0], channels, *x.shape[2:])
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=self.layout)

    def floats(self, *shape: int) -> Tensor:
        """Returns a float32 result."""
        return torch.empty(shape, dtype=torch.float32, device=self.inputs.x.device)

    def partial(self) -> Tensor | None:
        """Returns the memory for partial results, if the image is split."""
        return None if self.splits == 1 else self.floats(self.inputs.x.shape[0], 2, self.splits, self.channels)
