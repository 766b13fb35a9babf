"""What a step spends its time on: operators on a CPU, kernels on a GPU."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

ROWS = 40  # of a profile, saved
NAME = 120  # characters of a kernel's name, saved
# kind of op: parts of the names of operators and of GPU kernels; the first that fits counts
KINDS = {
    "attention": ("attention", "softmax", "baddbmm", "bmm", "flash", "fmha"),
    "norm": ("group_norm", "groupnorm", "moments"),
    "convolution": ("conv", "winograd", "fprop", "dgrad", "wgrad"),
    "activation": ("silu",),
    "linear": ("addmm", "aten::mm", "linear", "gemm", "nvjet", "cutlass"),
    "optimizer": ("adam", "lerp"),
    "sampler": ("update_kernel", "misfit", "normal_kernel"),
    "copies": ("copy", "cat", "contiguous", "pad", "upsample", "nchw", "nhwc", "memcpy"),
    "elementwise": ("add", "mul", "div", "sub", "fill", "sum", "norm", "clamp", "elementwise", "triton_", "reduce"),
}


@dataclass(frozen=True)
class Profile:
    """One line of profiles.jsonl: what a step runs, the slowest first, as (name, calls, ms)."""

    work: str
    variant: str
    batch: int
    ms: float  # of all
    rows: list[tuple[str, int, float]]
    environment: dict[str, Any]


def profiled(step: Callable[[], Any], device: torch.device) -> list[tuple[str, int, float]]:
    """Returns what a step runs, the slowest first: operators on a CPU, kernels on a GPU; how often, and ms in all."""
    cuda = device.type == "cuda"
    with (
        warnings.catch_warnings(),
        profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as run,
    ):
        warnings.simplefilter("ignore")  # of cycles that the profiler does not see
        step()
        if cuda:
            torch.cuda.synchronize(device)
    rows = [
        (event.key[:NAME], event.count, (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e3)
        for event in run.key_averages()
    ]
    return sorted(rows, key=lambda row: -row[2])


def shares(rows: list[tuple[str, int, float]]) -> dict[str, float]:
    """Returns the share of the time that each kind of op takes."""
    found = dict.fromkeys([*KINDS, "other"], 0.0)
    for name, _, ms in rows:
        kind = next((kind for kind, parts in KINDS.items() if any(part in name.lower() for part in parts)), "other")
        found[kind] += ms
    total = max(sum(found.values()), 1e-9)
    large = sorted((item for item in found.items() if item[1] > 0.005 * total), key=lambda item: -item[1])
    return {kind: time / total for kind, time in large}
