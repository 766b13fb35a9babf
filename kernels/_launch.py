"""The one place from which kernels are launched, so that they can be compiled for a GPU that is not here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Compile = Callable[[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]], None]
_instead: list[Compile] = []


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Launches a kernel, or does what a block of `instead_of_launching` does.

    Arguments:
        kernel: A triton.jit function.
        grid: The number of programs, by axis.
        arguments: The kernel's arguments.
        options: Its constants, and Triton's own options.
    """
    if _instead:
        _instead[-1](kernel, grid, arguments, options)
    else:
        kernel[grid](*arguments, **options)


@contextmanager
def instead_of_launching(do: Compile) -> Iterator[None]:
    """In the block no kernel is launched.

    Arguments:
        do: Called as do(kernel, grid, arguments, options) for every launch.
    """
    _instead.append(do)
    try:
        yield
    finally:
        _instead.pop()
