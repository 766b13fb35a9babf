"""Times every operator of one DPS step on a GPU: what ROOFLINE.md shows beside its predictions.

python benchmarks/operators.py [NETWORK] [--batch 256] [--device cuda] [--save]

Each call is timed by itself, with the caches as the call before left them; a row is the median over the repetitions of
the step. --save appends one JSON line for the native network and one for ours to benchmarks/results/operators.jsonl.
"""

import argparse
import statistics
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from e_step import NETWORKS
from measure import environment, is_dirty, save
from roofline import step_of
from walk import Node, Walk

from emfast.nn.rehearsal import rehearsed

Row = tuple[str, str, tuple[int, ...], int, int, float | None]  # operator, kind, result, bytes, calls, ms of a call


@dataclass(frozen=True)
class Operators:
    """One line of the results file."""

    network: str
    batch: int
    variant: str
    rows: list[Row]
    environment: dict[str, Any]


def main() -> int:
    """Runs what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", default="cifar-8", choices=NETWORKS)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--save", action="store_true", help="append to benchmarks/results/operators.jsonl")
    options = parser.parse_args()
    if options.save and is_dirty():
        parser.error("--save: the tree differs from its commit; commit first")
    results = []
    for variant in ("native eager", "ours"):
        step = step_of(options.network, options.batch, variant == "ours", options.device)
        walks = []
        cuda = options.device.type == "cuda"
        for repetition in range(options.repetitions + 2):  # the first two compile and prepare
            with nullcontext() if cuda else rehearsed(), Walk(timed=cuda) as walk:
                step()
            walks += [walk.nodes] if repetition > 1 else []
        rows = medians(walks)
        results.append(Operators(options.network, options.batch, variant, rows, environment(options.device)))
        calls = sum(row[4] for row in rows)
        print(f"{options.network} | batch {options.batch} | {variant}: {calls} calls, {total(rows):.2f} ms")
        for name, _, shape, moved, calls, ms in rows[:25]:
            if ms is not None:
                rate = f"{moved / ms / 1e9:.2f} TB/s" if ms else ""
                print(f"  {name:36} {' x '.join(map(str, shape)):24} {calls:3} x {ms:.4f} ms, {rate}")
    if options.save:
        save(results, "operators")
    return 0


def medians(walks: list[list[Node]]) -> list[Row]:
    """Returns a row for all calls of one operator, result and size, the slowest first."""
    found: dict[tuple[str, str, tuple[int, ...], int], list[float]] = {}
    counts: dict[tuple[str, str, tuple[int, ...], int], int] = {}
    for nodes in walks:
        for node in nodes:
            key = (node.name, node.kind, node.shape, node.bytes)
            counts[key] = counts.get(key, 0) + 1
            found.setdefault(key, []).extend([] if node.measured is None else [node.measured])
    rows = [
        (*key, counts[key] // len(walks), statistics.median(times) if times else None) for key, times in found.items()
    ]
    return sorted(rows, key=lambda row: -row[4] * (row[5] or 0.0))


def total(rows: list[Row]) -> float:
    """Returns the milliseconds of all calls."""
    return sum(calls * (ms or 0.0) for *_, calls, ms in rows)


if __name__ == "__main__":
    sys.exit(main())
