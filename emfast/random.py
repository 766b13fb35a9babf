r"""Counter-based noise: every number is a pure function of (seed, id, step, element).

The generator is Philox4x32-10 with key = seed and counter = (element // 4, step, id low, id high), so the noise of an
image does not depend on the batch it sits in, the order of the batches, the number of workers or the device.

References:
    | Parallel Random Numbers: As Easy as 1, 2, 3 (Salmon et al., 2011), doi 10.1145/2063384.2063405
"""

import hashlib
import math
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from emfast._check import check, check_ids, check_seed
from emfast._library import register, run_cpp

MASK = 0xFFFFFFFF
FARTHEST = 8  # a power of 2


class Stream(IntEnum):
    """What the noise of a sampler is for: those of n steps draw with the counters n stream ... n stream + n - 1.

    A further purpose takes a further number; to change one changes all samples that were ever drawn with it.
    """

    STEP = 0  # the fresh noise that a step adds
    START = 1  # pure noise, where the first step begins
    PRIOR = 2  # a sample around the estimate of a step
    MEASUREMENT = 4  # the measurement noise of an observation of that sample


def derive(seed: int, *names: str | int) -> int:
    """Returns a 64-bit seed for one named purpose, statistically independent of those of all other names.

    Arguments:
        seed: The seed of the whole run.
        names: What the numbers are for, e.g. `("round", 3, "e_step")`.
    """
    text = "/".join(str(part) for part in (check_seed(seed, "derive"), *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the four 32-bit words of Philox4x32-10, each an int64 tensor with values below 2^32.

    Arguments:
        counter: Four broadcastable int64 tensors with values below 2^32.
        seed: The key, 0 <= seed < 2^64.
    """
    check(0 <= seed < 2**64, "philox", "seed", "to be in [0, 2^64)", seed)
    c0, c1, c2, c3 = counter
    k0, k1 = seed & MASK, seed >> 32
    for _ in range(10):
        p0 = c0 * 0xD2511F53  # int64 wraps around, its 64 bits are those of the unsigned product
        p1 = c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((p1 >> 32) & MASK) ^ c1 ^ k0, p1 & MASK, ((p0 >> 32) & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def _words(count: int, ids: Tensor, seed: int, step: int | Tensor) -> Tensor:
    """Returns (B, ceil(count / 4), 4) Philox words."""
    block = torch.arange(-(-count // 4), device=ids.device)
    ids = ids.to(torch.int64)[:, None]
    return torch.stack(philox((block, _counter(step, ids), ids & MASK, (ids >> 32) & MASK), seed), dim=-1)


def _check_rows(ids: Tensor, function: str) -> None:
    check_ids(ids, function)
    good = ids.ndim == 1 and not (ids.is_floating_point() or ids.is_complex())
    check(good, function, "ids", "to be (B,) whole numbers", ids)


def _counter(step: int | Tensor, ids: Tensor) -> Tensor:
    """Returns a step as a tensor beside the ids; filled in there, since a copy would wait for the device."""
    return step if isinstance(step, Tensor) else torch.full((), step, dtype=torch.int64, device=ids.device)


def uniform(shape: tuple[int, ...], *, ids: Tensor, seed: int, step: int | Tensor = 0) -> Tensor:
    """Returns float32 uniform numbers in [0, 1), one image of `shape` for every id: (B, *shape).

    Arguments:
        shape: The shape of one image, without the batch.
        ids: (B,) integer ids; the numbers live on their device.
        seed: The key, 0 <= seed < 2^64.
        step: The step of a sampler, an int or a 0-dimensional tensor on the device of ids.
    """
    _check_rows(ids, "uniform")
    count = math.prod(shape)
    words = _words(count, ids, seed, step)
    values = (words >> 8).to(torch.float32) * 2.0**-24
    return values.flatten(1)[:, :count].reshape(ids.shape[0], *shape)


def normal(shape: tuple[int, ...], *, ids: Tensor, seed: int, step: int | Tensor = 0) -> Tensor:
    """Returns float32 standard normal numbers (Box-Muller), one image of `shape` for every id: (B, *shape).

    The Philox words behind them are the same on every backend, the numbers are up to rounding.

    Arguments:
        shape: The shape of one image, without the batch.
        ids: (B,) integer ids; the numbers live on their device.
        seed: The key, 0 <= seed < 2^64.
        step: The step of a sampler, an int or a 0-dimensional tensor on the device of ids.
    """
    _check_rows(ids, "normal")
    key = signed(seed, "normal")
    z: Tensor = _normal(shape, ids.to(torch.int64), _counter(step, ids), key)
    return z


class Generator:
    """Random numbers for a batch of images: what an operator that is simulated draws from.

    Row b belongs to ids[b], whatever the batch. Every call draws other numbers, the same ones for the same order of
    calls.

    Arguments:
        ids: (B,) integer ids; the numbers live on their device.
        seed: The key, 0 <= seed < 2^64.
        step: The step of a training, an int or a 0-dimensional tensor on the device of ids.
    """

    def __init__(self, ids: Tensor, seed: int, step: int | Tensor = 0) -> None:
        self.ids, self.seed, self.step, self.calls = ids, seed, step, 0

    def _key(self) -> int:
        self.calls += 1
        return self.seed if self.calls == 1 else derive(self.seed, "call", self.calls)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Returns float32 uniform numbers in [0, 1), (B, *shape)."""
        return uniform(shape, ids=self.ids, seed=self._key(), step=self.step)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Returns float32 standard normal numbers, (B, *shape)."""
        return normal(shape, ids=self.ids, seed=self._key(), step=self.step)

    def poisson(self, mean: Tensor) -> Tensor:
        r"""Returns Poisson counts of the given means, (B, ...), in their shape and dtype.

        The least k whose distribution function reaches a uniform number, sought around the expansion of Cornish and
        Fisher, which is never off by as many as `FARTHEST`: a fixed number of evaluations, and no rejection.

        .. math:: P(X \le k) = Q(k + 1, \lambda), \quad k \approx \lambda + \sqrt\lambda z + (z^2 - 1) / 6
        """
        rate = mean.to(torch.float64).clamp_min(0)
        u = self.uniform(tuple(mean.shape[1:])).to(torch.float64) + 2.0**-25  # in the middle of 2^24 intervals
        z = torch.special.ndtri(u)
        guess = (rate + rate.sqrt() * z + (z.square() - 1) / 6).floor()
        low = guess - FARTHEST  # P(X <= low) < u <= P(X <= low + width)
        width = 2 * FARTHEST
        while width > 1:
            width //= 2
            middle = low + width
            reached = torch.special.gammaincc(middle.clamp_min(0) + 1, rate) * (middle >= 0)
            low = torch.where(reached < u, middle, low)
        return (low + 1).to(mean.dtype)


def signed(seed: int, function: str) -> int:
    """Returns a seed as the int64 of the same bits, which is how ops take it.

    Arguments:
        seed: In 0 ... 2^64 - 1.
        function: The public function the caller used.
    """
    check(0 <= seed < 2**64, function, "seed", "to be in [0, 2^64)", seed)
    return seed - (seed >> 63 << 64)


def reference(shape: Sequence[int], ids: Tensor, step: Tensor, seed: int) -> Tensor:
    """The specification of `normal`; its seed is signed."""
    count = math.prod(shape)
    words = _words(count, ids, seed % 2**64, step)
    u = (words.to(torch.float32) + 0.5) * 2.0**-32  # in (0, 1]
    radius = torch.sqrt(-2.0 * torch.log(u[..., 0::2]))
    angle = (2.0 * math.pi) * u[..., 1::2]
    values = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return values.flatten(1)[:, :count].reshape(ids.shape[0], *shape).contiguous()


def _fake(shape: Sequence[int], ids: Tensor, step: Tensor, seed: int) -> Tensor:
    return ids.new_empty((ids.shape[0], *shape), dtype=torch.float32)


def _cpp(shape: Sequence[int], ids: Tensor, step: Tensor, seed: int) -> Tensor:
    z = _fake(shape, ids, step, seed)
    run_cpp("normal", [ids.contiguous(), step, z], len(ids), math.prod(shape), seed)
    return z


def _unsupported(shape: Sequence[int], ids: Tensor, step: Tensor, seed: int) -> str | None:
    return None if step.dtype == torch.int64 else f"a step of {step.dtype}"


_normal = register(
    "normal",
    "(SymInt[] shape, Tensor ids, Tensor step, int seed) -> Tensor",
    reference=reference,
    fake=_fake,
    triton="random",
    cpp=_cpp,
    unsupported=_unsupported,
)
