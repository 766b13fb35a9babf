"""Times ops: reference, native torch, torch.compile and emfast, forward and forward+backward.

python benchmarks/run.py [OP ...] [--save] [--table FILE] [--device cpu] [--threads N] [--only BACKEND ...]

An op's tests run first, and nothing is timed when they fail. --save appends one JSON line per measurement to
benchmarks/results/ops.jsonl and refuses a tree that differs from its commit; readme.py writes the tables of what is
saved. An op is added by a file in benchmarks/ops whose cases(device) yields its rows.
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import (
    ROOT,
    Case,
    Measurement,
    environment,
    is_dirty,
    load,
    measure,
    median,
    peak_memory,
    product,
    save,
)

from emfast.dispatch import backend

BACKENDS = ("reference", "native", "compile", "emfast")


def main() -> int:
    """Runs what the command line asks for; returns the exit code."""
    names = sorted(path.stem for path in (ROOT / "benchmarks" / "ops").glob("*.py"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"of {', '.join(names)}; all without any")
    parser.add_argument("--save", action="store_true", help="append the measurements to benchmarks/results/ops.jsonl")
    parser.add_argument("--table", type=Path, metavar="FILE", help="only write the saved measurements to a file")
    parser.add_argument("--untested", action="store_true", help="the tests have run already")
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.5, help="of timing, per function")
    parser.add_argument("--only", nargs="+", default=BACKENDS, choices=BACKENDS, metavar="BACKEND")
    options = parser.parse_args()
    if options.table:
        options.table.write_text(tables()[1])
        return 0
    unknown = sorted(set(options.ops) - set(names))
    if unknown:
        parser.error(f"no such op: {', '.join(unknown)}; there are {', '.join(names)}")
    if options.save and is_dirty():
        parser.error("--save: the tree differs from its commit; commit first")
    torch.set_num_threads(options.threads)
    for name in options.ops or names:
        if not options.untested and not is_green(name, options.device):
            return 1
        measurements = [m for case in load_cases(name)(options.device) for m in time_case(case, options)]
        if options.save:
            save(measurements, "ops")
    return 0


def is_green(name: str, device: torch.device) -> bool:
    """Returns whether the op's tests pass on the device."""
    test = ROOT / "tests" / "ops" / f"test_{name}.py"
    command = [sys.executable, "-m", "pytest", "-q", str(test), "--device", device.type]
    return subprocess.run(command, cwd=ROOT).returncode == 0


def load_cases(name: str) -> Callable[..., Any]:
    """Returns the function that yields an op's cases."""
    spec = importlib.util.spec_from_file_location(f"cases_{name}", Path(__file__).parent / "ops" / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cases: Callable[..., Any] = module.cases
    return cases


def time_case(case: Case, options: argparse.Namespace) -> list[Measurement]:
    """Measures and prints one case."""
    torch._dynamo.reset()
    functions = {
        "reference": backend("reference")(case.ours),
        "native": case.native,
        "compile": torch.compile(case.native, dynamic=False),
        "emfast": case.ours,
    }
    dtype, where, results = str(case.dtype).removeprefix("torch."), environment(options.device), []
    for phase, traffic in case.traffic.items():
        calls = {name: call(functions[name], case, phase) for name in options.only}
        x = case.inputs[0]
        y = torch.empty_like(x)
        calls["copy"] = lambda x=x, y=y: y.copy_(x)
        if phase in case.flops:
            calls["product"], operations = product(case.dtype, options.device)
        times = {name: median(t) for name, t in measure(calls, options.device, options.seconds).items()}
        ceiling = times.pop("copy")[1] * traffic / (2 * x.nbytes)
        least = times.pop("product")[1] * case.flops[phase] / operations if phase in case.flops else None
        print(f"{case.op} | {case.shape} | {dtype} {case.layout} | {phase}")
        for name, (p20, ms, p80) in times.items():
            mb = peak_memory(calls[name], options.device)
            row = (case.op, name, phase, case.shape, dtype, case.layout, ms, p20, p80, mb, ceiling / ms, where)
            results.append(Measurement(*row, least / ms if least else None))
            note = f", {least / ms:.0%} of the matrix product" if least else ""
            print(f"  {name:9} {ms:8.3f} ms ({p20:.3f} to {p80:.3f}), {ceiling / ms:.0%} of the copy bandwidth{note}")
    return results


def call(function: Callable[..., Any], case: Case, phase: str) -> Callable[[], Any]:
    """Returns a call of one phase without arguments."""
    if phase == "forward":
        return torch.no_grad()(lambda: function(*case.inputs))
    x = case.inputs[0].detach().clone().requires_grad_()
    cotangent = torch.ones_like(case.native(*case.inputs))
    return lambda: torch.autograd.grad(function(x, *case.inputs[1:]), x, cotangent)


def tables() -> tuple[str, str]:
    """Returns the summary of all saved measurements, and the whole of them, losing cases included."""
    devices: dict[str, dict[tuple[str, ...], dict[str, Measurement]]] = {}
    for m in load("ops"):
        key = (m.op, m.shape, f"{m.dtype} {m.layout}", m.phase)
        devices.setdefault(m.environment["device"], {}).setdefault(key, {})[m.backend] = m
    short, whole = ("".join(render(*item) for item in sorted(devices.items())) for render in (summary, table))
    return short, whole


def caption(device: str, rows: dict[tuple[str, ...], dict[str, Measurement]]) -> str:
    """Returns where and how one device's rows were measured."""
    first = next(iter(next(iter(rows.values())).values())).environment
    versions = f"torch {first['torch']}" + (f", triton {first['triton']}" if first["triton"] else "")
    return f"{device}, {versions}, commit {first['commit']}: `python benchmarks/run.py --save`."


def gain_of(row: dict[str, Measurement]) -> float | None:
    """Returns how many times faster emfast is than the best of the others, the reference aside."""
    others = [row[name].ms for name in ("native", "compile") if name in row]
    return min(others) / row["emfast"].ms if others and "emfast" in row else None


def summary(device: str, rows: dict[tuple[str, ...], dict[str, Measurement]]) -> str:
    """Returns a line for each op, dtype and pass: the least, the median and the largest speedup of its cases."""
    gains: dict[tuple[str, ...], list[float]] = {}
    for (op, _, kind, phase), row in rows.items():
        gain = gain_of(row)
        if gain is not None:
            gains.setdefault((op, kind.split()[0], phase), []).append(gain)
    lines = [caption(device, rows), "", "| op | dtype | pass | cases | least | median | largest speedup |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for key, values in gains.items():
        least, middle, largest = min(values), statistics.median(values), max(values)
        lines.append(f"| {' | '.join(key)} | {len(values)} | {least:.2f}x | {middle:.2f}x | {largest:.2f}x |")
    return "\n".join(lines) + "\n\n"


def table(device: str, rows: dict[tuple[str, ...], dict[str, Measurement]]) -> str:
    """Returns one device's table: ms, and how many times faster emfast is than the best of the others."""
    names = [name for name in BACKENDS if any(name in row for row in rows.values())]
    lines = [f"{caption(device, rows)} Median ms.", ""]
    lines += [f"| op | shape | dtype, layout | pass | {' | '.join(names)} | speedup | of copy bandwidth |"]
    lines += ["|---" * (len(names) + 6) + "|"]
    for key, row in rows.items():
        times = [f"{row[name].ms:.3f}" if name in row else "-" for name in names]
        gain = gain_of(row)
        ends = ["-", "-"] if gain is None else [f"{gain:.2f}x", f"{row['emfast'].fraction:.0%}"]
        lines.append(f"| {' | '.join((*key, *times, *ends))} |")
    return "\n".join(lines) + "\n\n"


if __name__ == "__main__":
    sys.exit(main())
