"""Images per second of a whole E-step: the official code's DPS, the samplers of other libraries, and emfast's.

python benchmarks/e_step_samplers.py [NETWORK ...] [--images 256] [--only SAMPLER ...] [--memory] [--save]

A whole E-step takes hours on a CPU, so it is not run: each sampler's own loop runs for a few steps, all samplers in
turn, and its time is **per step x steps x batches**, which the output and the saved lines say too; factors are those of
throughput over the first row's. 60 % of the pixels are missing. Quality is not compared here (see samplers.py): these
networks are not trained.

--memory runs each sampler in a process of its own and reports that process's maximum resident set. --save appends one
JSON line per sampler to benchmarks/results/e_step_samplers.jsonl and refuses a tree that differs from its commit.
deepinv and azula are not dependencies: where they are not installed, their rows are left out, with the reason.
"""

import argparse
import copy
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from e_step import BF16, NETWORKS, measure_steps, step_of
from measure import environment, is_dirty, median, save
from peers import SIGMA, Run, azula_dps, azula_mmps, deepinv_dps, settle_torchvision
from torch import Tensor, nn

import emfast
from emfast.diffusion import Denoiser, VPSchedule
from emfast.operators import Mask
from emfast.samplers import DPS, MMPS

METHOD = "ms per step x steps x batches"


@dataclass(frozen=True)
class EStep:
    """One line of the results file."""

    network: str
    sampler: str
    images: int
    batch: int
    steps: int
    ms_per_step: float
    p20: float
    p80: float
    seconds: float  # ms_per_step x steps x batches
    images_per_second: float
    method: str
    peak_mb: float | None
    environment: dict[str, Any]


def main() -> int:
    """Runs what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = ["small-64", "cifar-8"]
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)}; {defaults} if none")
    names = list(SAMPLERS)
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--images", type=int, default=256, help="observations of the E-step")
    parser.add_argument(
        "--batch", type=int, help="observations at once; that of the network's other benchmarks if none"
    )
    parser.add_argument("--run", type=int, default=3, metavar="STEPS", help="steps of one timed run")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing, per sampler; 4 runs at least")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", action="store_true", help="measure peak memory, a process per sampler (Linux)")
    parser.add_argument("--save", action="store_true", help="append to benchmarks/results/e_step_samplers.jsonl")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)  # the process that --memory starts
    options = parser.parse_args()
    unknown = sorted(set(options.networks) - set(NETWORKS))
    if unknown:
        parser.error(f"no such network: {', '.join(unknown)}; there are {', '.join(NETWORKS)}")
    if options.save and is_dirty():
        parser.error("--save: the tree differs from its commit; commit first")
    torch.set_num_threads(options.threads)
    settle_torchvision()
    for network in options.networks or defaults:
        if options.peak:
            next(iter(runs_of(network, options).values()))(2)
            print(resident_set())
            continue
        rows = compare(network, options)
        if options.save:
            save(rows, "e_step_samplers")
    return 0


def compare(network: str, options: argparse.Namespace) -> list[EStep]:
    """Measures and prints one network."""
    batch = options.batch or NETWORKS[network][1]
    batches = -(-options.images // batch)
    print(f"{network} | E-step of {options.images} observations | {batches} batches of {batch} | {METHOD}")
    runs = runs_of(network, options)
    kept = {name: SAMPLERS[name].keeps_memory for name in runs}
    timed = {name: partial(run, options.run) for name, run in runs.items()}
    times = measure_steps(timed, kept, options.seconds, torch.device("cpu"), least=5, dropped=1)
    rows: list[EStep] = []
    for name, values in times.items():
        p20, ms, p80 = (value / options.run for value in median(values))
        steps = SAMPLERS[name].steps
        seconds = ms * steps * batches / 1e3
        mb = peak_memory(network, name, options) if options.memory else None
        row = (network, name, options.images, batch, steps, ms, p20, p80, seconds, options.images / seconds)
        rows.append(EStep(*row, METHOD, mb, environment(torch.device("cpu"))))
        gain = f", {rows[-1].images_per_second / rows[0].images_per_second:.2f}x" if len(rows) > 1 else ""
        memory = "" if mb is None else f", peak {mb:.0f} MB"
        product = f"{ms:8.1f} ms ({p20:.1f} to {p80:.1f}) x {steps:4} x {batches}"
        print(f"  {name:23} {product} = {seconds:8.1f} s: {options.images / seconds:.3g} images/s{gain}{memory}")
    return rows


def runs_of(network: str, options: argparse.Namespace) -> dict[str, Run]:
    """Returns the chosen samplers, each around a copy of the same network, but for those not installed."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    configuration, batch = NETWORKS[network]
    model = UNet2DModel(**configuration).eval()
    x = torch.randn(options.batch or batch, model.config.in_channels, 32, 32).clamp(-1, 1)
    mask = Mask(missing=0.6).parameters(torch.arange(len(x)), tuple(x.shape[1:]))["mask"]
    runs = {}
    for name in options.only:
        try:
            runs[name] = SAMPLERS[name].build(copy.deepcopy(model), x, mask)
        except ImportError as error:
            print(f"  {name:23} left out: {error}")
    return runs


def peak_memory(network: str, name: str, options: argparse.Namespace) -> float:
    """Returns the maximum resident set, in MB, of a process that runs two steps of one sampler."""
    settings = ["--threads", str(options.threads), "--only", name, "--peak"]
    batch = ["--batch", str(options.batch)] if options.batch else []
    command = [sys.executable, __file__, network, *batch, *settings]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(printed.splitlines()[-1])


def resident_set() -> float:
    """Returns the maximum resident set of this process in MB, on Linux; getrusage's may be that of its parent."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found.group(1)) * 1024 / 1e6 if found else float("nan")


def official(unet: nn.Module, x: Tensor, mask: Tensor, *, variant: str = "fp32") -> Run:
    """DPS as the published code has it, its network a variant of e_step.py: eager float32."""
    step = step_of("dps", unet, x, variant)

    def run(steps: int) -> Tensor:
        for _ in range(steps):
            result = step()
        return result

    return run


def ours(
    unet: nn.Module, x: Tensor, mask: Tensor, *, sampler: Callable[[int], Any], dtype: torch.dtype | None = None
) -> Run:
    """A sampler of emfast, its network accelerated."""
    denoiser = Denoiser(emfast.accelerate(unet, dtype=dtype), VPSchedule.linear())
    operator = Mask(mask=mask)
    y = operator.observe(x)
    return lambda steps: sampler(steps)(denoiser, y, operator)


def mmps(steps: int) -> MMPS:
    """MMPS with the noise that azula is given too."""
    return MMPS(steps=steps, iterations=2, sigma_min=SIGMA)


@dataclass(frozen=True)
class Sampler:
    """How to build a sampler, its steps for a whole reconstruction, and whether it keeps freed memory."""

    build: Callable[[nn.Module, Tensor, Tensor], Run]
    steps: int
    keeps_memory: bool = False


SAMPLERS = {
    "official DPS-1000": Sampler(official, 1000),
    "compiled DPS-1000 fp32": Sampler(partial(official, variant="compile fp32"), 1000),
    "compiled DPS-1000 bf16": Sampler(partial(official, variant="compile bf16 channels_last"), 1000),
    "deepinv DPS-1000": Sampler(deepinv_dps, 1000),
    "azula DPS-1000": Sampler(azula_dps, 1000),
    "azula MMPS-20-2": Sampler(azula_mmps, 20),
    "emfast DPS-1000 fp32": Sampler(partial(ours, sampler=DPS), 1000, True),
    "emfast DPS-1000 bf16": Sampler(partial(ours, sampler=DPS, dtype=BF16), 1000, True),
    "emfast MMPS-20-2 fp32": Sampler(partial(ours, sampler=mmps), 20, True),
    "emfast MMPS-20-2 bf16": Sampler(partial(ours, sampler=mmps, dtype=BF16), 20, True),
}


if __name__ == "__main__":
    sys.exit(main())
