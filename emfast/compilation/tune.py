"""Configurations of Triton kernels for the GPU that is here, by measurement: a climb from what the tables give.

Where torch's own attention is faster than the kernels at their best, that is noted too, and models use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from emfast._check import check
from emfast._files import read_json, write_json
from emfast.compilation.compiling import Call, Layout, kernel_of

BATCH = 64  # The calls that are timed have this many images; a configuration serves batches of all sizes.
GAIN = 0.97  # What takes more than this share of the time before is not taken for faster: timings vary by as much.
Timer = Callable[[Callable[[], Any]], float]  # a function's milliseconds


def check_gpu() -> None:
    """Raises an error where there is no GPU to measure on."""
    fix = "Leave --tune away: without it every GPU is served by the configurations of the tables"
    check(torch.cuda.is_available(), "precompile", "--tune", "to find a GPU to time kernels on", "none", fix)


def tune(
    calls: Sequence[Call],
    folder: Path,
    *,
    device: str = "cuda",
    timer: Timer | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> dict[str, list[int] | bool]:
    """Times other configurations of the kernels that some calls launch, writes the faster ones to a file, returns them.

    The file, beside the compiled kernels, keeps what it holds of other sizes and other GPUs.

    Arguments:
        calls: Op calls, as `trace` finds them.
        folder: The cache of Triton, which may exist.
        device: Where the calls run.
        timer: Returns the milliseconds of a function; triton's do_bench by default.
        callback: Called as callback(calls done, calls in all).
    """
    import triton

    from emfast.kernels._tuned import asking

    found: dict[str, list[int] | bool] = {}
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(folder)
        for done, (op, arguments) in enumerate(calls, 1):
            values = [filled(x, device) if isinstance(x, Layout) else x for x in arguments]
            run = partial(kernel_of(op), *values)
            with asking() as asked:
                expected = tensors_of(run())
            for key, row in ((key, row) for key, row in asked.items() if not isinstance(row, bool)):
                best = _climb_from(run, key, row, expected, timer or _median)
                if best != row:
                    found[key] = list(best)
            if callback is not None:
                callback(done, len(calls))
        for op, arguments in calls:
            if op == "packed_attention":
                found |= _attention(arguments, device, found, timer or _median)
    note(folder, torch.cuda.get_device_name() if device == "cuda" else device, found)
    return found


def note(folder: Path, gpu: str, found: dict[str, list[int] | bool]) -> None:
    """Adds configurations to the file from which models take them.

    Arguments:
        folder: The cache of Triton.
        gpu: The name of the GPU that they were measured on.
        found: The configurations, by kernel and size.
    """
    from emfast.kernels._tuned import FILE, VERSION

    path = folder / FILE
    before = read_json(path) if path.is_file() else {}
    gpus = before["gpus"] if before.get("version") == VERSION else {}  # what another version measured is of no use
    gpus[gpu] = gpus.get(gpu, {}) | found
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"version": VERSION, "gpus": gpus})


def _attention(arguments: Any, device: str, found: dict[str, list[int] | bool], timer: Timer) -> dict[str, bool]:
    """Returns whether torch's own attention is faster, both ways, than the kernels as they are tuned."""
    from emfast.kernels._tuned import asking, trying
    from emfast.kernels.attention import is_slow

    forward, backward = (kernel_of(name) for name in ("packed_attention", "packed_attention_backward"))
    packed, scale = filled(arguments[0], device), arguments[1]
    leaf, grad = packed.detach().requires_grad_(), forward(packed, scale)[0]

    def ours() -> None:
        backward(grad, packed, *forward(packed, scale), scale)

    def native() -> None:
        with torch.enable_grad():
            query, key, value = leaf.unbind()
            out = F.scaled_dot_product_attention(query, key, value, scale=scale)
            torch.autograd.grad(out, leaf, grad)

    with asking() as asked:
        is_slow(packed)
    with ExitStack() as stack:
        for key, row in found.items():
            stack.enter_context(trying(key, row if isinstance(row, bool) else tuple(row)))
        slow = timer(native) < GAIN * timer(ours)
        return {key: slow for key, usual in asked.items() if usual != slow}


def _median(function: Callable[[], Any]) -> float:
    from triton.testing import do_bench

    return float(do_bench(function, warmup=5, rep=20, return_mode="median"))


def _climb_from(run: Callable[[], Any], key: str, row: tuple[int, ...], expected: list[Tensor], timer: Timer) -> Any:
    """Returns the configuration that none with one number halved or doubled beats."""
    best, seen = _milliseconds(run, key, row, expected, timer), {row}
    improved = True
    while improved:
        improved = False
        for other in _neighbours(row):
            if other in seen:
                continue
            seen.add(other)
            ms = _milliseconds(run, key, other, expected, timer)
            if ms < GAIN * best:
                row, best, improved = other, ms, True
                break
    return row


def _neighbours(row: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for i, number in enumerate(row):
        yield from ((*row[:i], value, *row[i + 1 :]) for value in (2 * number, number // 2) if value)


def _milliseconds(run: Callable[[], Any], key: str, row: Any, expected: list[Tensor], timer: Timer) -> float:
    """Returns a configuration's time; infinity for one that does not compile, or gives other results."""
    from emfast.kernels._tuned import trying

    with trying(key, row):
        try:
            results = tensors_of(run())
            return timer(run) if all(map(agree, results, expected)) else float("inf")
        except Exception:  # too much shared memory, too many threads: Triton has many names for it
            return float("inf")


def agree(x: Tensor, y: Tensor) -> bool:
    """Returns whether two results of a kernel are the same but for rounding.

    Arguments:
        x: One result.
        y: The other, by whose size the difference is judged.
    """
    return bool((x.float() - y.float()).abs().max() <= 0.02 * y.float().abs().max())


def tensors_of(tree: Any) -> list[Tensor]:
    """Returns the tensors with elements among the results of a kernel.

    Arguments:
        tree: The results: a tensor, or any structure of them.
    """
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.numel()]


def filled(layout: Layout, device: str) -> Tensor:
    """Returns a tensor of a layout with random values.

    Arguments:
        layout: The layout.
        device: Where the tensor is to be.
    """
    x = layout.empty(device)
    memory = x if x._base is None else x._base
    memory.normal_() if x.is_floating_point() else memory.zero_()
    return x
