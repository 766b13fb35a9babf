"""What em.py has saved, as a table and as pictures.

python benchmarks/em_show.py        draws one figure per task beside the results; readme.py writes the table
"""

from pathlib import Path
from typing import Any

import em
import torch

HEADS = ("task", "method", "seeds", "evaluations", "minutes (CPU)", "PSNR (dB)", "own PSNR", "SSIM", "FD")
HEADS += ("PSNR, new images", "coverage (0.6)", "variance (1)")
KEYS = ("psnr", "psnr_own", "ssim", "fd", "psnr_new", "coverage", "variance")


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the end of every method on every task, mean and spread over the seeds, in Markdown."""
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    for task in em.TASKS:
        for method in em.METHODS:
            config = em.config_of(task, method, 0, Path("unused"))
            if config is None:
                continue
            runs: dict[int, dict[str, Any]] = {}
            for row in rows:
                if (row["task"], row["method"]) == (task, method):
                    runs[row["seed"]] = max(row, runs.get(row["seed"], row), key=lambda r: r["round"])
            ends = list(runs.values())
            if method == em.LONG and not ends:  # a longer run of the same is no cell that is missing
                continue
            cells = ["not run"] + [""] * (1 + len(KEYS))
            if ends:
                cells = [f"{ends[0]['evaluations']:,}", minutes(ends)]
                cells += [spread([end[key] for end in ends if end.get(key) is not None]) for key in KEYS]
            part = [end["round"] for end in ends if end.get("stopped")]
            name = f"{method}, the first {part[0]} of {em.last_round(config, method)} rounds" if part else method
            lines.append(f"| {task} | {name} | {len(ends) or ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


def minutes(ends: list[dict[str, Any]]) -> str:
    """Returns the mean minutes of runs on a machine that did nothing else, and those of the CPU of all."""
    quiet = [end["seconds"] / 60 for end in ends if end.get("nice") == 0 and end["seconds"] is not None]
    cpu = [end["cpu_seconds"] / 60 for end in ends if end.get("cpu_seconds") is not None]
    parts = [f"{sum(quiet) / len(quiet):.1f}"] if quiet else []
    return " ".join(parts + ([f"({sum(cpu) / len(cpu):.1f})"] if cpu else []))


def spread(values: list[float]) -> str:
    """Returns a mean, and of several values their standard deviation; nothing of none."""
    if not values:
        return ""
    numbers = torch.tensor(values, dtype=torch.float64)
    text = f"{float(numbers.mean()):.3g}" if float(numbers.mean()) < 10 else f"{float(numbers.mean()):.2f}"
    return text if len(values) < 2 else f"{text} ± {float(numbers.std()):.2g}"


def draw(task: str, rows: list[dict[str, Any]], path: Path) -> None:
    """Draws PSNR and FD against evaluations, a line a method and seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    lines = sorted({(em.METHODS.index(row["method"]), row["seed"]) for row in rows if row["task"] == task})
    for place, seed in lines:
        line = [row for row in rows if (row["task"], row["method"], row["seed"]) == (task, em.METHODS[place], seed)]
        line.sort(key=lambda row: row["evaluations"])
        for axis, key in zip(axes, ("psnr", "fd"), strict=True):
            values = ([row["evaluations"] for row in line], [row[key] for row in line])
            first = seed == min(other for where, other in lines if where == place)
            axis.plot(*values, "o-", color=f"C{place}", label=em.METHODS[place] if first else None, markersize=4)
    for axis, text in zip(axes, ("PSNR [dB]", "Frechet distance"), strict=True):
        axis.set(xscale="log", xlabel="network evaluations", ylabel=text)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle(task)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Draws all figures."""
    for task in {row["task"] for row in em.saved()}:
        draw(task, em.saved(), em.FILE.with_name(f"em_{task}.png"))


if __name__ == "__main__":
    main()
