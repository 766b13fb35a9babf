"""Configurations that `emfast precompile --tune` has measured, in the place of those that the kernels' tables give.

They are read once from the file EMFAST_TUNED, or from FILE in the folder TRITON_CACHE_DIR: for each name of a GPU, a
configuration for each kernel and size that was measured to be faster, and whether something else is (`choice`).
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
import triton
from torch import Tensor

from ._archive import folder as cache_folder

FILE = "emfast-tuned.json"
VERSION = 2  # of the file: another number for every change of what a key or a row means
Row = tuple[int, ...]
_trial: dict[str, Row | bool] = {}
_asked: list[dict[str, Row | bool]] = []


def tuned(kernel: str, x: Tensor, sizes: tuple[int, ...], default: Row) -> Row:
    """Returns the configuration of a kernel for some sizes on the GPU of x: the measured one, or the default."""
    found = _measured(kernel, x, sizes, default)
    return default if isinstance(found, bool) else tuple(found)


def choice(question: str, x: Tensor, sizes: tuple[int, ...], default: bool) -> bool:
    """Returns the answer to a question for some sizes on the GPU of x: the measured one, or the default."""
    return _measured(question, x, sizes, default) is True


def _measured(name: str, x: Tensor, sizes: tuple[int, ...], default: Row | bool) -> Row | bool:
    if not (_asked or _trial or table()):
        return default
    key = " ".join(map(str, (name, *map(int, sizes))))
    for asked in _asked:
        asked[key] = default
    if key in _trial or not x.is_cuda:
        return _trial.get(key, default)
    return table().get(gpu(x.device.index), {}).get(key, default)


def architecture() -> int:
    """Returns the compute capability that is compiled for (90); 0 for the interpreter, and for what is not NVIDIA's."""
    try:
        arch = triton.runtime.driver.active.get_current_target().arch
    except RuntimeError:  # there is no driver
        return 0
    return arch if isinstance(arch, int) else 0


@cache
def table() -> dict[str, dict[str, Row | bool]]:
    """Returns what the file holds for each GPU: {} without one.

    Raises:
        ValueError: If it was written for kernels of another version.
    """
    folder = cache_folder()
    path = os.environ.get("EMFAST_TUNED") or (os.path.join(folder, FILE) if folder else "")
    if not os.path.isfile(path):
        return {}
    with open(path) as file:
        content = json.load(file)
    found = content.get("version")
    if found != VERSION:
        fix = "Delete it, or run `emfast precompile --tune true` again"
        raise ValueError(f"kernels: expected {path} to be of version {VERSION}, got {found}. {fix}.")
    gpus: dict[str, dict[str, Row | bool]] = content["gpus"]
    return gpus


@cache
def gpu(index: int) -> str:
    """Returns the name of a GPU."""
    return torch.cuda.get_device_name(index)


@contextmanager
def asking() -> Iterator[dict[str, Row | bool]]:
    """Yields what is asked for in the block, each key with its default."""
    asked: dict[str, Row | bool] = {}
    _asked.append(asked)
    try:
        yield asked
    finally:
        _asked.pop()


@contextmanager
def trying(key: str, row: Row | bool) -> Iterator[None]:
    """Gives a configuration to all who ask for a key in the block."""
    _trial[key] = row
    try:
        yield
    finally:
        del _trial[key]
