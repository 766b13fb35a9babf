"""Times configurations of the kernels that a DPS step launches: what the tables in kernels/ are made from.

python benchmarks/sweep.py compile [NETWORK] [--batch 256] [--jobs 2]   without a GPU: fills Triton's cache, and a list
python benchmarks/sweep.py measure [NETWORK] [--seconds 60] [--save]   on a GPU: times what the list names

The costliest calls come first. A configuration that spills registers, or has the tiles of another, is left out. The
list is sweep.json in Triton's cache. --save appends a line for each kernel and size to tiles.jsonl, with the times of
all. Faster ones are noted in that cache, where models find them. `emfast precompile --tune true` climbs from the tables
instead, for any model, and compiles as it goes.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from compiled import Compiled
from e_step import NETWORKS
from measure import environment, median, once, save

from emfast.compilation.compiling import Call, Layout, compiling, kernel_of, launch
from emfast.compilation.precompile import trace
from emfast.compilation.tune import GAIN, agree, filled, note, tensors_of
from emfast.kernels._group_norm_tiles import rows
from emfast.kernels._tuned import asking, trying

SWEPT = ("attention", "group_norm")  # keys of those whose configurations are swept
LIST = "sweep.json"
SPILLS = 64  # bytes of stack that a configuration may use
LEAST = 60e6  # bytes that a call moves at least: smaller ones are launches
REPEATS = 9


@dataclass
class Candidates:
    """The configurations of one kernel for one size: a line of the list."""

    key: str
    call: Call
    default: tuple[int, ...]
    rows: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """What the call reads and writes at least, its results as large as its first tensor."""
        tensors = [x for x in self.call[1] if isinstance(x, Layout)]
        return sum(torch.Size(x.shape).numel() * x.dtype.itemsize for x in (*tensors, tensors[0]))


@dataclass(frozen=True)
class Swept:
    """A line of tiles.jsonl."""

    key: str
    device: str
    commit: str
    op: str
    shape: tuple[int, ...]  # of the call's first tensor
    default: tuple[int, ...]
    default_ms: float
    best: tuple[int, ...]
    best_ms: float
    mb: float
    all: list[tuple[tuple[int, ...], float]]  # configurations, and their milliseconds


def candidates(network: str, batch: int) -> list[Candidates]:
    """Returns what the calls of a step ask for, the costliest first, without configurations."""
    from diffusers import UNet2DModel

    import emfast
    from emfast.diffusion import Denoiser, VPSchedule

    model = emfast.accelerate(UNet2DModel(**NETWORKS[network][0]), dtype=torch.bfloat16)
    found: dict[str, Candidates] = {}
    for call in trace(Denoiser(model, VPSchedule.linear()), (model.config.in_channels, 32, 32), batch):
        with asking() as asked, compiling(90):
            launch(*call)
        for key, row in asked.items():
            if key.startswith(SWEPT) and key not in found:
                found[key] = Candidates(key, call, tuple(row))  # type: ignore[arg-type]
    return sorted((c for c in found.values() if c.bytes >= LEAST), key=lambda c: -c.bytes)


def attention_rows(backward: bool) -> Iterator[tuple[int, ...]]:
    """Yields heads, BLOCK_M, BLOCK_N, warps and stages."""
    for m, n, warps in itertools.product((16, 32, 64, 128), (32, 64, 128, 256), (1, 2, 4)):
        if 16 <= m * n / (32 * warps) <= (64 if backward else 128):
            yield from ((1, m, n, warps, stages) for stages in (1, 2, 3))


def normalisation_rows(backward: bool, group: int, pixels: int) -> Iterator[tuple[int, ...]]:
    """Yields the most elements of a tile, warps, channels wanted, and of a backward its stages; one of equal forms."""
    seen = set()
    for wanted, most, warps in itertools.product((group, 16, 24, 32, 48, 64), (8192, 16384, 32768), (2, 4, 8, 16)):
        channels = triton.next_power_of_2(group * triton.cdiv(wanted, group))
        tile = channels, rows(most, channels, pixels), warps
        if tile in seen or not 16 <= tile[0] * tile[1] / (32 * warps) <= (64 if backward else 128):
            continue
        seen.add(tile)
        stages = (1, 3) if tile[1] >= pixels else (1,)
        yield from ((most, warps, wanted, n) for n in stages) if backward else [(most, warps, wanted)]


def compiled(work: tuple[str, Call, tuple[int, ...]]) -> tuple[Any, bool]:
    """Compiles a configuration; returns its hashes, and whether it may be fast: it fits and hardly spills."""
    key, call, row = work
    try:
        with trying(key, row), compiling(90) as done:
            launch(*call)
        shape = call[1][0].shape  # type: ignore[union-attr]
        kernels = [Compiled.of(k, grid, shape) for k, grid in zip(done.kernels, done.grids, strict=True)]
        good = all(kernel.stack <= SPILLS and kernel.resident > 0 for kernel in kernels)
    except Exception:  # Triton has many names for what it cannot compile
        return None, False
    return tuple(kernel.hash for kernel in done.kernels), good


def compile_all(found: list[Candidates], jobs: int) -> None:
    """Compiles all configurations, and gives each kernel those that are worth a measurement."""
    work = []
    for one in found:
        name, *sizes = one.key.split()
        backward = name.endswith("backward")
        own = attention_rows(backward) if "attention" in name else normalisation_rows(backward, *map(int, sizes[4:6]))
        work += [(one.key, one.call, row) for row in dict.fromkeys((one.default, *own))]
    seen: set[Any] = set()
    rows_of = {one.key: one.rows for one in found}
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for done, ((key, _, row), (hashes, good)) in enumerate(
            zip(work, pool.map(compiled, work, chunksize=4), strict=True), 1
        ):
            if good and (key, hashes) not in seen:
                seen.add((key, hashes))
                rows_of[key].append(row)
            if done % 50 == 0:
                print(f"{done} of {len(work)}", flush=True)
    Path(triton.knobs.cache.dir, LIST).write_text(json.dumps({one.key: one.rows for one in found}))


def measure(one: Candidates, device: torch.device) -> Swept:
    """Returns the times of one kernel and size."""
    op, arguments = one.call
    run = partial(kernel_of(op), *[filled(x, str(device)) if isinstance(x, Layout) else x for x in arguments])
    expected, times = tensors_of(run()), []
    for row in dict.fromkeys((one.default, *one.rows)):
        with trying(one.key, row):
            try:
                if not all(map(agree, tensors_of(run()), expected)):
                    print(f"  {one.key} {row}: other results", flush=True)
                    continue
                times.append((row, median([once(run, device, queued=True) for _ in range(REPEATS)])[1]))
            except Exception as error:  # Triton has many names for what a GPU has not enough of
                print(f"  {one.key} {row}: {type(error).__name__}", flush=True)
    (_, usual), (best, ms) = times[0], min(times, key=lambda pair: pair[1])
    where, shape = environment(device), next(x.shape for x in arguments if isinstance(x, Layout))
    print(f"{one.key} {list(shape)}: {one.default} {usual:.3f} -> {best} {ms:.3f} ms, {len(times)} tried", flush=True)
    return Swept(
        one.key, where["device"], where["commit"], op, shape, one.default, usual, best, ms, one.bytes / 1e6, times
    )


def main() -> int:
    """Runs what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["compile", "measure"])
    parser.add_argument("network", nargs="?", default="cifar-8", choices=NETWORKS)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=60.0, help="no kernel is begun after these")
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--save", action="store_true", help="append to tiles.jsonl")
    options = parser.parse_args()
    found, end = candidates(options.network, options.batch), time.perf_counter() + options.seconds
    if options.work == "compile":
        compile_all(found, options.jobs)
        print(f"{sum(len(one.rows) for one in found)} configurations of {len(found)} kernels and sizes")
        return 0
    listed = json.loads(Path(triton.knobs.cache.dir, LIST).read_text())
    for one in found:
        one.rows = [tuple(row) for row in listed.get(one.key, [])]
        if time.perf_counter() < end:
            swept = measure(one, options.device)
            if options.save:
                save([swept], "tiles")
            if swept.best_ms < GAIN * swept.default_ms:
                note(Path(triton.knobs.cache.dir), swept.device, {swept.key: list(swept.best)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
