"""Timing, ceilings, and the record of one measurement."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent
HEAD_START = 1_500_000  # clocks, about 0.8 ms
RESULTS = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results")


@dataclass(frozen=True)
class Case:
    """One row of an op's benchmark: the tensors, the functions to compare, and what they must at least move."""

    op: str
    shape: str
    dtype: torch.dtype
    layout: str
    inputs: tuple[Tensor, ...]  # the first one is what gradients are taken to
    ours: Callable[..., Tensor]
    native: Callable[..., Tensor]
    traffic: dict[str, int]  # bytes of the passes "forward" and "forward+backward"
    flops: dict[str, int] = field(default_factory=dict)  # of the same passes, where they count


@dataclass(frozen=True)
class Measurement:
    """One line of a results file."""

    op: str
    backend: str
    phase: str
    shape: str
    dtype: str
    layout: str
    ms: float
    p20: float
    p80: float
    mb: float | None
    fraction: float  # of the copy bandwidth measured in the same run
    environment: dict[str, Any] = field(default_factory=dict)
    compute: float | None = None  # fraction of the matrix product measured in the same run
    shares: dict[str, float] | None = None  # of the time, by kind of op


def images(count: int, device: torch.device) -> int:
    """Returns a batch that fills the device: on a CPU the given one."""
    return max(256, 4 * count) if device.type == "cuda" else count


def product(dtype: torch.dtype, device: torch.device) -> tuple[Callable[[], Tensor], int]:
    """Returns a large matrix product, and its FLOPs."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, side, side, device=device).to(dtype).unbind()
    return lambda: a @ b, 2 * side**3


def measure(functions: dict[str, Callable[[], Any]], device: torch.device, seconds: float) -> dict[str, list[float]]:
    """Returns the times, in ms, of functions called in turn, so that a busy machine slows them all alike."""
    for function in functions.values():
        for _ in range(3):
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds * len(functions)
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, function in functions.items():
            times[name].append(once(function, device, queued=True))
    return times


def once(function: Callable[[], Any], device: torch.device, *, queued: bool = False) -> float:
    """Returns the time of one call in ms, on a GPU with a cold second-level cache.

    Arguments:
        function: The call.
        device: Where it runs.
        queued: A GPU begins when all is launched, so that its own time is measured: that of an op, not of a step.
    """
    if device.type != "cuda":
        start = time.perf_counter()
        function()
        return (time.perf_counter() - start) * 1e3
    torch.empty(1 << 26, dtype=torch.int32, device=device).zero_()
    if queued:
        torch.cuda._sleep(HEAD_START)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def median(times: list[float]) -> tuple[float, float, float]:
    """Returns the 20th, 50th and 80th percentile."""
    cuts = quantiles(times, n=10)
    return cuts[1], cuts[4], cuts[7]


def peak_memory(function: Callable[[], Any], device: torch.device) -> float | None:
    """Returns the peak of memory that a call adds, in MB; None on a CPU, where torch does not count it."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def environment(device: torch.device) -> dict[str, Any]:
    """Returns where and with what a measurement was made."""
    triton = None
    if device.type == "cuda":
        import triton

        triton = triton.__version__
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{cpu_name()}, {torch.get_num_threads()} threads"
    )
    commit = os.environ.get("EMFAST_COMMIT") or git("rev-parse", "--short", "HEAD") or "unknown"
    return {"device": name, "torch": torch.__version__, "triton": triton, "commit": commit}


def cpu_name() -> str:
    """Returns the processor's name as the system gives it, and its instruction set as torch does."""
    info = Path("/proc/cpuinfo")
    lines = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    name = lines[0].split(":")[1].strip() if lines else platform.processor()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def git(*arguments: str) -> str:
    """Returns what a git command prints; nothing where there is no git or no repository."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def is_dirty() -> bool:
    """Returns whether the working tree differs from the commit, results aside; EMFAST_COMMIT names that of a copy."""
    return "EMFAST_COMMIT" not in os.environ and bool(git("status", "--porcelain", "--", ".", ":!benchmarks/results"))


def save(measurements: Sequence[Any], name: str) -> None:
    """Appends measurements (dataclasses) to a results file, one JSON object per line."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.writelines(json.dumps(asdict(measurement)) + "\n" for measurement in measurements)


def load(name: str) -> list[Measurement]:
    """Returns the measurements of a results file, of repeated ones the last."""
    path = RESULTS / f"{name}.jsonl"
    found = [Measurement(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    keyed = {(m.op, m.backend, m.phase, m.shape, m.dtype, m.layout, m.environment["device"]): m for m in found}
    return list(keyed.values())
