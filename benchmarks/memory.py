"""Peak memory and cost of the EM loop without a network, against the number of observations of 3 x 64 x 64.

python benchmarks/memory.py [--sizes 1000 10000 100000] [--side 64] [--folder FOLDER]

Each size is a process of its own: its observations are a file, its sampler gives them back, its network has one weight.
So what is measured is all that emfast does for an observation beside sampling and training: reading, checksums,
writing, shuffling, evaluating. Opening and the fingerprint come once in a run, the rest in each of its rounds. A few
training steps are made for their memory; their seconds belong to the training, which does not depend on how many there
are.
100,000 observations need 5 GB of disk; the observations themselves are a sparse file.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from emfast.config import EvaluationConfig, MStepConfig
from emfast.data.store import Store
from emfast.diffusion import Denoiser, VPSchedule
from emfast.em import Observations, e_step
from emfast.em.batches import Batches
from emfast.em.e_steps import clamped
from emfast.em.evaluation import Evaluator
from emfast.em.m_step import m_step
from emfast.operators import Identity
from emfast.samplers import Sampler, WarmStart

BATCH = 64
FEW = 512  # observations of a first round, which pays for what is imported, compiled and allocated once
ONCE = ("open", "fingerprint")


@dataclass(frozen=True)
class Copy(Sampler):
    """Gives the observations back."""

    steps: int = 1
    evaluations = 0

    def __call__(self, denoiser, y, operator, **rest):  # type: ignore[no-untyped-def]
        """Returns y."""
        return y


class Network(nn.Module):
    """As small as they get."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Returns the images, scaled."""
        return x * self.weight


def peak() -> float:
    """Returns the largest memory that this process has taken so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def touch(path: Path, size: int) -> None:
    """Writes a file and removes it: a virtual machine takes ten times as long for memory that it gives out first."""
    block = bytes(1 << 20)
    with path.open("wb") as file:
        for _ in range(-(-size // len(block))):
            file.write(block)
    path.unlink()


def write_observations(path: Path, count: int, shape: tuple[int, int, int]) -> None:
    """Writes a file of observations that are 0, and take no room on the disk."""
    size = 4 * count * math.prod(shape)
    header = json.dumps({"y": {"dtype": "F32", "shape": [count, *shape], "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)


def measure(count: int, folder: Path, shape: tuple[int, int, int]) -> dict[str, float]:
    """Returns the peak in MB, and the milliseconds that each part of a round takes for an observation."""
    folder.mkdir()
    found: dict[str, float] = {"observations": count, "MB before": peak()}

    @contextmanager
    def part(name: str, timed: bool = True) -> Iterator[None]:
        begin, busy = time.perf_counter(), time.process_time()
        yield
        if timed:
            found[f"ms {name}"] = 1e3 * (time.perf_counter() - begin) / count
            found[f"CPU ms {name}"] = 1e3 * (time.process_time() - busy) / count
        found[f"MB {name}"] = peak()

    write_observations(folder / "y.safetensors", count, shape)
    size = 4 * count * math.prod(shape)
    touch(folder / "block", size)
    denoiser, ids = Denoiser(Network(), VPSchedule.linear()), torch.arange(count)
    with part("open"):
        observations = Observations.from_file(folder / "y.safetensors", Identity(), sigma=0.1)
    with part("fingerprint"):
        _ = observations.fingerprint
    arguments = {"count": count, "shard_size": 256, "identity": {}}
    touch(folder / "block", size)
    with part("E-step"):
        store = Store(folder / "store", **arguments)
        e_step(Copy(), denoiser, observations, ids, store, batch_size=BATCH)
    with part("verify"):
        images = clamped(store.rows("images"))
        store.load("seconds")
    with part("one epoch"):
        batches = Batches(count, BATCH, 0)
        for k in range(count // BATCH):
            images[batches.ids(k)]
    with part("M-step of 8 steps", timed=False):
        config = MStepConfig(batch_size=BATCH)
        m_step(denoiser, images, steps=8, config=config, seed=0, checkpoint=folder / "training.safetensors")
    with part("evaluate"):
        Evaluator(EvaluationConfig(samples=0), None, shape).reconstructions(images, ids, observations)
    with part("next round begins"):
        if store.missing:
            raise RuntimeError("memory: expected a whole store, got missing shards.")
        warm = WarmStart(Copy(), clamped(store.rows("images")), store.load("ids"), 1.0)
        for some in ids.split(BATCH):
            warm.earlier(some[warm.known(some)])
    return found


def run(count: int, side: int, folder: Path) -> dict[str, float]:
    """Returns what `measure` does in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, __file__, "--one", str(count), "--side", str(side), "--folder", scratch]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    """Prints a row for each number, and the whole cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--side", type=int, default=64, help="of an image")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        torch.set_num_threads(1)
        shape = (3, options.side, options.side)
        measure(FEW, options.folder / "few", shape)
        print(json.dumps(measure(options.one, options.folder / "all", shape)))
        return
    rows = [run(size, options.side, options.folder) for size in options.sizes]
    for name in rows[0]:
        print(f"{name:24}" + "".join(f"{row[name]:12.4g}" for row in rows))
    for kind in ("ms", "CPU ms"):
        once = [f"{kind} {name}" for name in ONCE]
        each = [name for name in rows[0] if name.startswith(f"{kind} ") and name not in once]
        for title, names in ((f"{kind} once", once), (f"{kind} each round", each)):
            totals = [sum(row[name] for name in names) for row in rows]
            print(f"{title:24}" + "".join(f"{total:12.4g}" for total in totals))


if __name__ == "__main__":
    main()
