"""Standard normal noise: Philox4x32-10 and Box-Muller, the words bit for bit those of the reference."""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._grid import grid, place
from ._launch import launch

BLOCK = 256  # counters of one program; each gives four numbers


@triton.jit
def unit_interval(w):
    """(w + 0.5) / 2^32, rounded as the reference does: once to float32, once after the addition."""
    high = (w >> 16).to(tl.int32).to(tl.float32)
    low = (w & 0xFFFF).to(tl.int32).to(tl.float32)
    return ((high * 65536.0 + low) + 0.5) * 2.3283064365386963e-10


@triton.jit
def minus_log(u):
    """-log(u) for 2^-34 < u <= 1, accurate near 1, where a GPU's fast logarithm is not.

    u = 2^n m with m in [sqrt(1/2), sqrt(2)), and log m = 2 atanh((m - 1) / (m + 1)).
    """
    bits = u.to(tl.int32, bitcast=True)
    n = (bits - 0x3F3504F3) >> 23
    m = (bits - (n << 23)).to(tl.float32, bitcast=True)
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    series = 0.6666666667 + square * (0.4 + square * (0.2857142857 + square * 0.2222222222))
    exponent = (-n).to(tl.float32)
    return exponent * 0.693359375 - (exponent * 2.12194440e-4 + (2.0 * s + s * square * series))


@triton.jit
def cosine_sine(u):
    """cos and sin of 2 pi u, by their series in the nearest quarter turn."""
    quarter = tl.floor(u * 4.0 + 0.5)
    a = (u * 4.0 - quarter) * 1.57079633
    square = a * a
    s = -1.98412698e-4 + square * 2.75573192e-6
    s = a + a * square * (-0.166666667 + square * (8.33333333e-3 + square * s))
    c = -1.38888889e-3 + square * (2.48015873e-5 - square * 2.75573192e-7)
    c = 1.0 + square * (square * (4.16666667e-2 + square * c) - 0.5)
    q = quarter.to(tl.int32) & 3
    cosine = tl.where((q & 1) == 1, s, c)
    sine = tl.where((q & 1) == 1, c, s)
    return tl.where(((q + 1) & 2) == 2, -cosine, cosine), tl.where((q & 2) == 2, -sine, sine)


@triton.jit
def normals(seed, step, id, first, BLOCK: tl.constexpr):
    """The normal numbers of elements 4 first + [0, 4 BLOCK) of one image, in order."""
    counter = (first + tl.arange(0, BLOCK)).to(tl.uint32)
    zero = counter * 0
    c1, c2 = zero + step.to(tl.uint32), zero + (id & 0xFFFFFFFF).to(tl.uint32)
    c3 = zero + ((id >> 32) & 0xFFFFFFFF).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, counter, c1, c2, c3)
    radius = tl.sqrt(2.0 * minus_log(unit_interval(w0)))
    cosine, sine = cosine_sine(unit_interval(w1))
    z0, z1 = radius * cosine, radius * sine
    radius = tl.sqrt(2.0 * minus_log(unit_interval(w2)))
    cosine, sine = cosine_sine(unit_interval(w3))
    return tl.interleave(tl.interleave(z0, radius * cosine), tl.interleave(z1, radius * sine))


@triton.jit(do_not_specialize=["seed"])
def normal_kernel(ids, step, z, count, seed, BLOCK: tl.constexpr):
    """Draws 4 BLOCK numbers of one image. Grid: images x blocks. Moves z once."""
    image, first = place(count, 4 * BLOCK)
    values = normals(seed, tl.load(step), tl.load(ids + image), first // 4, BLOCK)
    e = first + tl.arange(0, 4 * BLOCK)
    tl.store(z + image * count + e, values, mask=e < count)


def normal(shape: Sequence[int], ids: Tensor, step: Tensor, seed: int) -> Tensor:
    """Launches the kernel; the arguments are the op's."""
    count = math.prod(shape)
    z = torch.empty((len(ids), *shape), dtype=torch.float32, device=ids.device)
    if z.numel():
        with torch.cuda.device_of(ids):
            launch(normal_kernel, grid(len(ids), count, 4 * BLOCK), ids.contiguous(), step, z, count, seed, BLOCK=BLOCK)
    return z
