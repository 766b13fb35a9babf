"""Kernels compiled for a GPU that is not here: the real launch code runs, under a driver that only compiles."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

import emfast.ops
import emfast.random  # noqa: F401
from emfast.dispatch import TABLE

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


def layouts(op: Any, args: tuple[Any, ...]) -> Call:
    """Returns a call of an op without the values of its tensors.

    Arguments:
        op: The op.
        args: Its arguments, tensors among them.
    """
    plain = tree_map_only(Tensor, Layout.of, args)
    return op._opname, tuple(tuple(value) if isinstance(value, list) else value for value in plain)


def launch(op: str, arguments: Sequence[Any]) -> None:
    """Launches the Triton kernels of a call, in a `compiling` block.

    Arguments:
        op: The name of the op.
        arguments: Its arguments, as of `layouts`.
    """
    kernel_of(op)(*[x.empty() if isinstance(x, Layout) else x for x in arguments])


def kernel_of(op: str) -> Callable[..., Any]:
    """Returns the function that launches the Triton kernel of an op that has one."""
    launcher: Callable[..., Any] = next(way.compute for way in TABLE[op] if way.name == "triton")
    return launcher


class Compilation:
    """What was compiled in a `compiling` block."""

    def __init__(self) -> None:
        self.kernels: list[Any] = []  # of every launch
        self.grids: list[tuple[int, ...]] = []
        self.compiled: set[str] = set()  # hashes of those that were not found in the cache


class _Driver:
    """What Triton asks of a driver when it compiles for an architecture that is not here."""

    utils: Any = None  # for whoever makes launchers

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
