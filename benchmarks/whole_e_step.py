"""Runs a whole E-step as `emfast train` does, and says how long it took, from the first import on.

python benchmarks/whole_e_step.py [NETWORK] [--images 5000] [--batch 256] [--device cuda] [--save]

5,000 observations with 60 % of the pixels missing, MMPS with 20 steps, an untrained network in bfloat16. Cold start:
from the start of this process to the end of the first step, with whatever kernels Triton's cache holds. Busy: the share
of the E-step in which the GPU computed, as its driver counts it. --save appends one JSON line to
benchmarks/results/whole_e_step.jsonl.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from e_step import NETWORKS
from measure import environment, is_dirty, save

import emfast
from emfast.data import Images
from emfast.data.store import Store
from emfast.diffusion import Denoiser, VPSchedule
from emfast.em.e_step import e_step
from emfast.em.observations import Observations
from emfast.operators import Mask
from emfast.samplers import MMPS


@dataclass(frozen=True)
class EStep:
    """One line of the results file."""

    network: str
    images: int
    batch: int
    sampler: str
    cold_start: float  # seconds
    seconds: float  # of the whole E-step, its first step included
    after_first_step: float
    busy: float | None
    peak_mb: float | None
    environment: dict[str, Any]


class Usage(threading.Thread):
    """Asks the driver ten times a second for the share of the last moments in which the GPU computed."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(daemon=True)
        self.device, self.ended, self.values = device, threading.Event(), list[float]()

    def run(self) -> None:
        """Asks until it is told to end."""
        while not self.ended.wait(0.1):
            try:
                self.values.append(torch.cuda.utilization(self.device) / 100)
            except Exception:  # no driver, or no library that asks it: each has errors of its own
                return

    def mean(self) -> float | None:
        """Ends, and returns the mean."""
        self.ended.set()
        return statistics.fmean(self.values) if self.values else None


def process_age() -> float:
    """Returns the seconds since this process began, on Linux."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Runs what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", default="cifar-8", choices=NETWORKS)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--save", action="store_true", help="append to benchmarks/results/whole_e_step.jsonl")
    options = parser.parse_args()
    if options.save and is_dirty():
        parser.error("--save: the tree differs from its commit; commit first")
    device, sampler = options.device, MMPS(steps=options.steps, iterations=2)
    torch.manual_seed(0)
    network = UNet2DModel(**NETWORKS[options.network][0]).eval()
    shape = (network.config.in_channels, 32, 32)
    emfast.accelerate(network, dtype=torch.bfloat16)
    denoiser = Denoiser(network, VPSchedule.linear()).to(device)
    observations = Observations(Mask(missing=0.6), images=Images(torch.rand(options.images, *shape) * 2 - 1))
    usage, first, age = Usage(device), list[float](), list[float]()

    def step(done: int, of: int) -> None:
        if not first:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                usage.start()
            first.append(time.perf_counter())
            age.append(process_age())

    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "images", count=options.images, shard_size=options.batch, identity={})
        begin = time.perf_counter()
        ids = torch.arange(options.images)
        e_step(sampler, denoiser, observations, ids, store, batch_size=options.batch, callback=step)
        end = time.perf_counter()
    peak = torch.cuda.max_memory_reserved(device) / 1e6 if device.type == "cuda" else None
    times = (age[0], end - begin, end - first[0])
    name = f"MMPS(steps={options.steps}, iterations=2)"
    row = EStep(options.network, options.images, options.batch, name, *times, usage.mean(), peak, environment(device))
    print(
        f"{row.network} | E-step of {row.images} observations in batches of {row.batch} | {name}\n"
        f"  cold start {row.cold_start:.1f} s, E-step {row.seconds:.2f} s ({row.images / row.seconds:.0f} images/s), "
        f"{row.after_first_step:.2f} s of it after the first step; busy {row.busy}, peak {row.peak_mb} MB"
    )
    if options.save:
        save([row], "whole_e_step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
