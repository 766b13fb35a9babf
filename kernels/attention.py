"""Attention, read and written in the strides of the projections around it; what its forward and backward share.

A tile is (tokens, dimensions) of one head, or (heads, tokens, dimensions) where one head alone would waste tensor cores
and sectors of memory: then every warp has heads of its own. Scores never leave the registers; the logarithm of the sum
of a row is all that the backward needs of them. No atomics: the same input gives the same bits.

In the kernels a tensor is a `Strided`, and FORM a `Form`; a place is (image, first head, number of heads). Addresses
are 64-bit.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import launch
from ._tuned import architecture, choice, tuned

Rows = Mapping[tuple[int, int], tuple[tuple[int, ...], ...]]

# For each (bytes of an element, dimensions of a tile): heads of a tile, BLOCK_M, BLOCK_N, num_warps, num_stages. The
# first row whose BLOCK_N holds all keys is taken, else the last. As large as the registers of every architecture and
# 99 KiB of memory allow.
FORWARD = {
    (2, 16): ((4, 32, 64, 4, 2),),
    (2, 32): ((1, 128, 64, 8, 2),),
    (2, 64): ((1, 128, 64, 8, 2),),
    (2, 128): ((1, 64, 32, 4, 2),),
    (2, 256): ((1, 64, 32, 4, 2),),
    (4, 16): ((1, 64, 32, 4, 1),),
    (4, 32): ((1, 32, 32, 4, 1),),
    (4, 64): ((1, 32, 32, 4, 1),),
}
# Other rows for GPUs that multiply with four warps together, as an H100 measured them: a head is then a program's own.
WARPGROUPS = (90, 100)
FORWARD_BY_WARPGROUPS = {(2, 16): ((4, 32, 64, 4, 2), (1, 128, 64, 4, 3))}


class Strided(NamedTuple):
    """A tensor as the kernels take it: its address, and its strides."""

    address: Tensor
    image: int  # in units of `Form.vector` elements, as those of head and token
    head: int
    token: int
    dimension: int  # in elements


class Form(NamedTuple):
    """What the tiles of a launch look like."""

    size: int  # of a head: its dimensions
    padded: int  # the dimensions of a tile
    heads: int  # of a tile
    vector: int  # how many elements all strides but that of the dimension are multiples of
    wide: bool  # whether bfloat16 is held in float32
    ones: bool  # whether the first dimension that only pads the values is 1: tensor cores then add the weights up


LOG2_E = tl.constexpr(1.4426950408889634)  # exp2 is the instruction that a GPU has, exp is four of them


@triton.jit
def place(heads, tokens, BLOCK: tl.constexpr, FORM: tl.constexpr):
    """Returns this program's place and tokens, of a grid of images x groups of heads x blocks of tokens."""
    blocks, groups = tl.cdiv(tokens, BLOCK), tl.cdiv(heads, FORM.heads)
    group = tl.program_id(0) // blocks
    token = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    return ((group // groups).to(tl.int64), (group % groups * FORM.heads).to(tl.int64), heads), token


@triton.jit
def locate(x, where, token, tokens, FORM: tl.constexpr):
    """Returns the addresses (tokens, heads, dimensions) of a tile, without heads if it has one, and which exist."""
    image, first, heads = where
    d = tl.arange(0, FORM.padded)
    base = x.address + image * x.image * FORM.vector
    row, column = token.to(tl.int64) * x.token * FORM.vector, d.to(tl.int64) * x.dimension
    if FORM.heads == 1:
        address = base + first * x.head * FORM.vector + row[:, None] + column[None, :]
        mask = (token < tokens)[:, None] & (d < FORM.size)[None, :]
    else:
        h = first + tl.arange(0, FORM.heads)
        address = base + (h * x.head * FORM.vector)[None, :, None] + row[:, None, None] + column[None, None, :]
        mask = (token < tokens)[:, None, None] & (h < heads)[None, :, None] & (d < FORM.size)[None, None, :]
    return address, mask


@triton.jit
def locate_rows(where, token, tokens, FORM: tl.constexpr):
    """Returns the offsets of one number per row of a tile, in (B, H, N), and which exist."""
    image, first, heads = where
    if FORM.heads == 1:
        offset, mask = (image * heads + first) * tokens + token, token < tokens
    else:
        h = first + tl.arange(0, FORM.heads)
        offset = (image * heads + h)[:, None] * tokens + token[None, :]
        mask = (h < heads)[:, None] & (token < tokens)[None, :]
    return offset, mask


@triton.jit
def rounded(tile, FORM: tl.constexpr):
    """Returns a float32 tile as the nearest bfloat16 numbers if WIDE, since the interpreter truncates."""
    if FORM.wide:
        bits = tile.to(tl.int32, bitcast=True)
        tile = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    return tile


@triton.jit
def load_tile(x, where, token, tokens, FORM: tl.constexpr):
    """Reads a tile, zero where there is nothing."""
    address, mask = locate(x, where, token, tokens, FORM)
    tile = tl.load(address, mask=mask, other=0.0)
    if FORM.wide:
        tile = tile.to(tl.float32)
    if FORM.heads > 1:
        tile = tl.permute(tile, (1, 0, 2))
    return tile


@triton.jit
def store_tile(x, tile, where, token, tokens, FORM: tl.constexpr):
    """Writes a tile in the dtype of x."""
    address, mask = locate(x, where, token, tokens, FORM)
    tile = rounded(tile, FORM).to(x.address.dtype.element_ty)
    if FORM.heads > 1:
        tile = tl.permute(tile, (1, 0, 2))
    tl.store(address, tile, mask=mask)


@triton.jit
def transposed(tile):
    """Returns a tile, or every head of it, transposed."""
    return tl.permute(tile, (1, 0) if len(tile.shape) == 2 else (0, 2, 1))


@triton.jit
def multiply(a, b, FORM: tl.constexpr):
    """Returns a b in float32, a rounded to the dtype of b; float32 is not rounded to tf32."""
    return tl.dot(rounded(a, FORM).to(b.dtype), b, input_precision="ieee")


@triton.jit
def products(a, b):
    """Returns a b^T, the products of all rows of two tiles, in float32."""
    return tl.dot(a, transposed(b), input_precision="ieee")


@triton.jit
def limited(x, token, tokens, otherwise: tl.constexpr, AXIS: tl.constexpr, EVEN: tl.constexpr):
    """Replaces what lies behind the last token along axis -1 or -2 of x; EVEN says that nothing does."""
    if not EVEN:
        inside = tl.expand_dims(token < tokens, -3 - AXIS)
        if len(x.shape) == 3:
            inside = tl.expand_dims(inside, 0)
        x = tl.where(inside, x, otherwise)
    return x


@triton.jit
def attention_kernel(
    query, key, value, out, lse, heads, tokens, keys, scale,
    FORM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EVEN: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Writes the attention of BLOCK_M queries of some heads, and the log-sum-exp of their scores.

    Grid: images x groups of heads x blocks of queries. Loops over the keys with a running maximum, unless all of them
    are one block (WHOLE). Moves query and out once; key and value once per block of queries, mostly out of the cache.
    """
    where, m = place(heads, tokens, BLOCK_M, FORM)
    scale *= LOG2_E
    q = load_tile(query, where, m, tokens, FORM)
    sums = tl.zeros(q.shape, tl.float32)
    total = tl.sum(sums, -1)
    high = total - 1e30  # no infinity: a score of -inf has no weight, and a block of them gives no NaN
    for start in range(0, BLOCK_N if WHOLE else keys, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        k = load_tile(key, where, n, keys, FORM)
        s = limited(products(q, k), n, keys, float("-inf"), -1, EVEN)
        higher = tl.maximum(high, tl.max(s, -1))
        if query.address.dtype.element_ty == tl.float32:
            p = tl.exp2((s - tl.expand_dims(higher, -1)) * scale)
        else:  # an instruction less, and as exact as scores of 16 bits
            p = tl.exp2(s * scale - tl.expand_dims(higher * scale, -1))
        v = load_tile(value, where, n, keys, FORM)
        if FORM.ones:
            v = tl.where(tl.arange(0, FORM.padded) == FORM.size, 1.0, v).to(v.dtype)
        if WHOLE:
            sums = multiply(p, v, FORM)
        else:
            factor = tl.exp2((high - higher) * scale)
            sums = sums * tl.expand_dims(factor, -1) + multiply(p, v, FORM)
            total *= factor
        if not FORM.ones:
            total += tl.sum(p, -1)
        high = higher
    if FORM.ones:
        total = tl.sum(tl.where(tl.arange(0, FORM.padded) == FORM.size, sums, 0.0), -1)
    store_tile(out, sums / tl.expand_dims(total, -1), where, m, tokens, FORM)
    row, mask = locate_rows(where, m, tokens, FORM)
    tl.store(lse + row, (high * scale + tl.log2(total)) / LOG2_E, mask=mask)


def form(tensors: Sequence[Tensor], heads: int) -> tuple[Form, list[Strided]]:
    """Returns the form of tiles of some heads, and the tensors as the kernels take them."""
    vector, size = 16 // tensors[0].element_size(), tensors[0].shape[3]
    strides = [[0 if n == 1 else s for n, s in zip(t.shape, t.stride(), strict=True)] for t in tensors]
    while any(s % vector for row in strides for s in row[:3]):
        vector //= 2
    pairs = zip(tensors, strides, strict=True)
    strided = [Strided(t, s[0] // vector, s[1] // vector, s[2] // vector, s[3]) for t, s in pairs]
    wide = tensors[0].dtype == torch.bfloat16 and triton.knobs.runtime.interpret  # whose bfloat16 products are wrong
    ones = tensors[0].element_size() == 2 and padded(tensors[0]) > size
    return Form(size, padded(tensors[0]), heads, vector, wide, ones), strided


def padded(x: Tensor) -> int:
    """Returns the dimensions of a tile."""
    return max(triton.next_power_of_2(x.shape[3]), 16)


def empty(x: Tensor) -> Tensor:
    """Returns a result of the shape and dtype of x, with the memory of a contiguous (B, N, H, D)."""
    batch, heads, tokens, size = x.shape
    return x.new_empty((batch, tokens, heads, size)).transpose(1, 2)


def configure(kernel: str, table: Rows, other: Rows, query: Tensor, key: Tensor) -> tuple[int, dict[str, int]]:
    """Returns the heads of a tile, and its blocks as keyword arguments of a kernel, no larger than they need to be."""
    (_, heads, tokens, _), keys = query.shape, key.shape[2]
    size = query.element_size(), min(padded(query), 256)
    rows = other.get(size, table[size]) if architecture() in WARPGROUPS else table[size]
    row = next((row for row in rows if keys <= row[2]), rows[-1])
    row = tuned(kernel, query, (query.element_size(), padded(query), tokens, keys, heads == 1), row)
    together, block_m, block_n, warps, stages = row
    block_m = max(min(block_m, triton.next_power_of_2(tokens)), 16)
    block_n = max(min(block_n, triton.next_power_of_2(keys)), 16)
    if heads == 1:
        together, warps = 1, max(warps // together, 1)
    tile = {"BLOCK_M": block_m, "BLOCK_N": block_n, "num_warps": warps, "num_stages": stages}
    return together, tile


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Launches the forward; the arguments are the op's."""
    batch, heads, tokens, _ = query.shape
    out, lse = empty(query), query.new_empty((batch, heads, tokens), dtype=torch.float32)
    together, tile = configure("attention", FORWARD, FORWARD_BY_WARPGROUPS, query, key)
    layout, tensors = form((query, key, value, out), together)
    keys, block = key.shape[2], tile["BLOCK_N"]
    grid = (batch * triton.cdiv(heads, together) * triton.cdiv(tokens, tile["BLOCK_M"]),)
    with torch.cuda.device_of(query):
        arguments = (*tensors, lse, heads, tokens, keys, scale, layout)
        launch(attention_kernel, grid, *arguments, EVEN=keys % block == 0, WHOLE=keys <= block, **tile)
    return out, lse


def is_slow(packed: Tensor) -> bool:
    """Returns whether torch's own attention is faster: by the file of measurements, else as an H100 measured both ways.

    The time of torch's fastest backend over that of these kernels, in bfloat16: 1.6 at dimensions 8 and 16, 0.9 at 32
    and 1.0 at 64 (there torch's gradients need another copy), 0.8 at 64 with 1,024 tokens, 0.6 at 128. Float32 is
    multiplied without tensor cores here.
    """
    tokens, size = packed.shape[3:]
    default = packed.dtype == torch.float32 or size > 64 or (size > 32 and tokens > 512)
    key = (packed.element_size(), *packed.shape[2:])
    return choice("native attention", packed, key, default)


def packed_attention(packed: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Launches the forward on (3, B, H, N, D); the arguments are the op's."""
    query, key, value = packed.unbind()
    return attention(query, key, value, scale)
