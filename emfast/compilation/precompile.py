"""Triton kernels compiled ahead of time, on a machine that needs no GPU, and all else that launching them needs.

What is compiled here is what is launched there: the same tiles, specialisations and options. What a model launches is
found by running it on fake tensors.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from emfast._check import check
from emfast._files import write_file
from emfast._library import triton_error
from emfast.compilation.compiling import Call, compiling, launch, layouts
from emfast.compilation.launchers import build_launchers
from emfast.diffusion import Denoiser
from emfast.dispatch import TABLE
from emfast.nn.rehearsal import rehearsed
from emfast.operators import GaussianBlur, Mask, MotionBlur
from emfast.ops.attention import largest
from emfast.samplers import DPS
from emfast.samplers.problem import Problem, transitions

ARCHITECTURES = (80, 86, 89, 90, 100, 120)  # compute capabilities of NVIDIA GPUs
BATCHES = (1, 2, 16)  # Triton compiles a number that is 1, a multiple of 16, and any other one differently


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
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), rehearsed(), recording() as calls:
            y = torch.empty(batch, *shape)
            problem = Problem(denoiser.eval(), y, *mask, 0.0, ids, 0, table)
            sampler.step(problem, sampler.initial(problem), y, torch.zeros((), dtype=torch.int64))
            for operator, parameters in others:
                operator.misfit(y, y, parameters)
                operator.adjoint(operator.apply(y, parameters), parameters)
            learned = [p for p in denoiser.train().parameters() if p.requires_grad]
            torch.autograd.grad(denoiser.loss(y, torch.empty(batch), y).mean(), learned)
    finally:
        denoiser.train(training)
    return list(dict.fromkeys(layouts(op, args) for op, args in calls if _has_kernel(op, args)))


def _has_kernel(op: Any, args: tuple[Any, ...]) -> bool:
    attention = "attention" in op._opname
    too_large = attention and args[0].shape[-1] > largest(args[0].dtype)
    return any(way.name == "triton" for way in TABLE[op._opname]) and not too_large


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
    Returns:
        How many kernels were compiled, and how many were there already.
    """
    name = "precompile"
    check(not triton_error(), name, "triton", "to be installed", "none", "pip install triton", RuntimeError)
    import triton

    interpreted, fix = triton.knobs.runtime.interpret, "Unset TRITON_INTERPRET"
    check(not interpreted, name, "kernels", "to be compiled", "Triton's interpreter", fix, RuntimeError)
    for arch in architectures:
        check(arch in ARCHITECTURES, name, "architecture", f"to be one of {ARCHITECTURES}", arch)
    from emfast.kernels import _manifest
    from emfast.kernels._cache import mark, settle

    _manifest.check(folder)
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
    launches = build_launchers(calls, folder, architectures=architectures)
    _note(folder, calls, architectures, launches)
    return len(compiled), len(kernels - compiled)


def _note(folder: Path, calls: Sequence[Call], architectures: Sequence[int], launches: bool) -> None:
    """Adds to the manifest of a cache what was compiled for it."""
    from emfast.kernels import _manifest

    before = _manifest.read(folder) or {"calls": {}, "launchers": True}
    found: dict[str, list[str]] = {**before["calls"]}
    for arch in architectures:
        found[str(arch)] = sorted({*found.get(str(arch), ()), *map(digest, calls)})
    made = {str(arch): {*map(digest, calls)} for arch in architectures}
    whole = all(made.get(arch, set()) >= set(names) for arch, names in found.items())  # nothing from before is left
    kernels = Counter(path.stem for path in folder.glob("*/*.cubin"))
    content = {"architectures": sorted(found, key=int), "calls": found, "kernels": dict(kernels)}
    _manifest.write(folder, {**content, "launchers": launches and (whole or before["launchers"])})


def digest(call: Call) -> str:
    """Returns 16 hexadecimal digits that stand for a call in the manifest of a cache."""
    return hashlib.blake2b(repr(call).encode(), digest_size=8).hexdigest()


def write_archive(folder: Path, path: Path) -> None:
    """Writes a cache to one file, which `EMFAST_KERNELS` may name.

    Arguments:
        folder: The cache.
        path: The file.
    """
    from emfast.kernels._archive import pack

    write_file(path, lambda file: pack(folder, file))


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
