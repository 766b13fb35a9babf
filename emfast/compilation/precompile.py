"""Triton kernels compiled ahead of time, on a machine that needs no GPU.

The real launch code runs under a driver that only compiles, so that what is compiled here is what is launched there:
the same tiles, specialisations and options. What a model launches is found by running it on fake tensors.
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from emfast._check import check
from emfast._library import triton_error
from emfast.diffusion import Denoiser
from emfast.dispatch import TABLE
from emfast.nn.rehearsal import rehearsed
from emfast.operators import GaussianBlur, Mask, MotionBlur
from emfast.ops.attention import LARGEST
from emfast.samplers import DPS
from emfast.samplers.base import Problem, transitions

ARCHITECTURES = (80, 86, 89, 90, 100, 120)  # compute capabilities of NVIDIA GPUs
BATCHES = (1, 2, 16)  # Triton compiles a number that is 1, a multiple of 16, and any other one differently
_devices = itertools.count(1 << 32)


@dataclass(frozen=True)
class Layout:
    """A tensor without its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, x: Tensor) -> Layout:
        """Returns the layout of a tensor; a stride that is never taken is 1."""
        strides = tuple(1 if n == 1 else s for n, s in zip(x.shape, x.stride(), strict=True))
        return cls(x.dtype, tuple(x.shape), strides, int(x.storage_offset()))

    def empty(self, device: str = "cpu") -> Tensor:
        """Returns a tensor of this layout; its memory is not touched."""
        last = sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        memory = torch.empty(self.offset + last + 1, dtype=self.dtype, device=device)
        return memory.as_strided(self.shape, self.stride, self.offset)


Call = tuple[str, tuple[Hashable, ...]]  # an op's name and its arguments, with layouts in the place of tensors


class Compilation:
    """What was compiled in a `compiling` block."""

    def __init__(self) -> None:
        self.kernels: list[Any] = []  # of every launch
        self.grids: list[tuple[int, ...]] = []
        self.compiled: set[str] = set()  # hashes of those that were not found in the cache


class _Driver:
    """What Triton asks of a driver when it compiles for an architecture that is not here."""

    def __init__(self, arch: int | str) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", arch, 32) if isinstance(arch, int) else GPUTarget("hip", arch, 64)
        self.device = next(_devices)  # never that of another block: kernels in memory may not be in its cache

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.target


@contextmanager
def _driven_by(driver: _Driver) -> Iterator[None]:
    """Gives Triton another driver in the block; its own may not exist yet, nor be able to."""
    import triton

    own = triton.runtime.driver._active
    triton.runtime.driver.set_active(driver)
    try:
        yield
    finally:
        triton.runtime.driver.set_active(own)


@contextmanager
def compiling(arch: int | str) -> Iterator[Compilation]:
    """Compiles the kernels that are launched in the block, and runs none. Arguments of launches are CPU tensors.

    Arguments:
        arch: A compute capability (90), or the name of an AMD architecture ("gfx942").
    """
    import triton

    from emfast.kernels._launch import instead_of_launching

    done = Compilation()

    def compile_only(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        if isinstance(arch, str):
            options.pop("maxnreg", None)  # which AMD has not
        done.grids.append(grid)
        done.kernels.append(kernel.run(*arguments, grid=grid, warmup=True, **options))

    def listen(*, metadata: dict[str, Any], cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            done.compiled.add(metadata["hash"])

    with instead_of_launching(compile_only), _driven_by(_Driver(arch)), triton.knobs.compilation.scope():
        triton.knobs.compilation.listener = listen
        yield done


@contextmanager
def recording() -> Iterator[list[tuple[Any, tuple[Any, ...]]]]:
    """Yields the list of the emfast ops called in the block, forward and backward, with their arguments."""
    calls: list[tuple[Any, tuple[Any, ...]]] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if op.namespace == "emfast":
                calls.append((op, args))
            return op(*args, **(kwargs or {}))

    with Recorder():
        yield calls


def trace(denoiser: Denoiser, shape: tuple[int, int, int], batch: int) -> list[Call]:
    """Returns the op calls that have Triton kernels in sampling from and training a model on a GPU, each once.

    Arguments:
        denoiser: The model, on the CPU and accelerated.
        shape: (C, H, W) of its images.
        batch: The size of the batches.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    ids, sampler = torch.arange(batch), DPS(steps=2)
    table = transitions(denoiser.schedule, sampler.times(denoiser.schedule, 0.0), sampler.eta)
    side = min(shape[1:])
    size = min(9, side - 1 + side % 2)  # whatever it is: only the argument of a loop
    blurs = (GaussianBlur(size), GaussianBlur(size, padding="circular"), MotionBlur(size))
    mask, *others = [(operator, operator.parameters(ids, shape)) for operator in (Mask(missing=0.5), *blurs)]
    training = denoiser.training
    with FakeTensorMode(allow_non_fake_inputs=True), rehearsed(), recording() as calls:
        y = torch.empty(batch, *shape)
        problem = Problem(denoiser.eval(), y, *mask, 0.0, ids, 0, table)
        sampler.step(problem, sampler.initial(problem), y, torch.zeros((), dtype=torch.int64))
        for operator, parameters in others:
            operator.misfit(y, y, parameters)
            operator.adjoint(operator.apply(y, parameters), parameters)
        learned = [p for p in denoiser.train().parameters() if p.requires_grad]
        torch.autograd.grad(denoiser.loss(y, torch.empty(batch), y).mean(), learned)
    denoiser.train(training)
    return list(dict.fromkeys(layouts(op, args) for op, args in calls if _has_kernel(op, args)))


def layouts(op: Any, args: tuple[Any, ...]) -> Call:
    """Returns a call of an op without the values of its tensors."""
    plain = tree_map_only(Tensor, Layout.of, args)
    return op._opname, tuple(tuple(value) if isinstance(value, list) else value for value in plain)


def launch(op: str, arguments: Sequence[Any]) -> None:
    """Launches the Triton kernels of a call, in a `compiling` block."""
    kernel_of(op)(*[x.empty() if isinstance(x, Layout) else x for x in arguments])


def kernel_of(op: str) -> Callable[..., Any]:
    """Returns the function that launches the Triton kernel of an op that has one."""
    launcher: Callable[..., Any] = next(way.compute for way in TABLE[op] if way.name == "triton")
    return launcher


def _has_kernel(op: Any, args: tuple[Any, ...]) -> bool:
    attention = "attention" in op._opname
    return any(way.name == "triton" for way in TABLE[op._opname]) and not (attention and args[0].shape[-1] > LARGEST)


def precompile(
    denoiser: Denoiser,
    shape: tuple[int, int, int],
    folder: Path,
    *,
    architectures: Sequence[int],
    batches: Sequence[int] = BATCHES,
    jobs: int = 1,
    callback: Callable[[int, int], None] | None = None,
) -> tuple[int, int]:
    """Fills a Triton cache with every kernel that sampling from a model and training it launches.

    A process with `TRITON_CACHE_DIR=folder` and the same version of Triton then compiles nothing. The sampler's own
    kernels are those of masks and blurs.

    Arguments:
        denoiser: The model, on the CPU and accelerated.
        shape: (C, H, W) of its images.
        folder: The cache, which may exist.
        architectures: Some of ARCHITECTURES.
        batches: Sizes of batches; those by default stand for all.
        jobs: How many processes compile; 1 is this one.
        callback: Called as callback(calls done, calls in all).

    Returns:
        How many kernels were compiled, and how many were there already.
    """
    calls = list(dict.fromkeys(call for batch in batches for call in trace(denoiser, shape, batch)))
    return compile_calls(calls, folder, architectures=architectures, jobs=jobs, callback=callback)


def compile_calls(
    calls: Sequence[Call],
    folder: Path,
    *,
    architectures: Sequence[int],
    jobs: int = 1,
    callback: Callable[[int, int], None] | None = None,
) -> tuple[int, int]:
    """Fills a Triton cache with the kernels that op calls launch; see `precompile`.

    Arguments:
        calls: The calls, as `trace` finds them.
        folder: The cache, which may exist.
        architectures: Some of ARCHITECTURES.
        jobs: How many processes compile; 1 is this one.
        callback: Called as callback(calls done, calls in all).
    """
    name = "precompile"
    check(not triton_error(), name, "triton", "to be installed", "none", "pip install triton", RuntimeError)
    import triton

    interpreted, fix = triton.knobs.runtime.interpret, "Unset TRITON_INTERPRET"
    check(not interpreted, name, "kernels", "to be compiled", "Triton's interpreter", fix, RuntimeError)
    for arch in architectures:
        check(arch in ARCHITECTURES, name, "architecture", f"to be one of {ARCHITECTURES}", arch)
    from emfast.kernels._cache import mark, settle

    settle(str(folder))
    mark(folder)
    work = [(arch, call, folder) for arch in architectures for call in calls]
    kernels, compiled = set[str](), set[str]()
    with _processes(jobs) as run:
        for step, (launched, new) in enumerate(run(_compile, work), 1):
            kernels |= launched
            compiled |= new
            if callback is not None:
                callback(step, len(work))
    return len(compiled), len(kernels - compiled)


@contextmanager
def _processes(jobs: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Yields a `map` over some processes: fresh ones, since threads of torch do not survive a fork."""
    if jobs == 1:
        yield map
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield pool.map


def _compile(work: tuple[int, Call, Path]) -> tuple[set[str], set[str]]:
    """Compiles what a call launches; returns the hashes of its kernels, and of those that were not there."""
    import triton

    arch, call, folder = work
    with triton.knobs.cache.scope(), compiling(arch) as done:
        triton.knobs.cache.dir = str(folder)
        launch(*call)
    return {kernel.hash for kernel in done.kernels}, done.compiled
