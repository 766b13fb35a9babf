"""The tables of docs/benchmarks.md, written from what the benchmarks have saved, each between two comments of its own.

python benchmarks/readme.py

Every measurement, the lost ones too, goes to ops.md, steps.md and samplers.md in benchmarks/results.
"""

import json
import sys
from typing import Any

import em
import em_show
import held_out
import run
import samplers
import scale
import simulated
from e_step import NETWORKS, VARIANTS
from measure import RESULTS, ROOT, Measurement, load
from samplers_show import lines_of

WORKS = {"dps": "DPS step", "train": "training step"}
UNETS = {"cifar-8": "CIFAR-10 U-Net, heads of 8", "cifar-256": "CIFAR-10 U-Net, one head of 256"}
SHOWN = (  # of the rows of samplers.py: their beginnings
    "DPS(steps=1000",
    "DPS(steps=100,",
    "MMPS(steps=10, iterations=2",
    "MMPS(steps=20, iterations=2",
    "ReverseFromObservation(steps=20",
    "DiffPIR(steps=50",
)


def main() -> int:
    """Writes all tables; returns the exit code."""
    path = ROOT / "docs" / "benchmarks.md"
    text = path.read_text()
    for name, (short, whole) in {
        "samplers": (quality(SHOWN), quality(("",))),
        "steps": steps(),
        "gpu": gpu(),
        "e-steps": (e_steps(), None),
        "ops": run.tables(),
        "em": (em_show.table(em.saved()), None),
        "held-out": (held_out.table(), None),
        "simulated": (simulated.table(simulated.saved()), None),
        "scale": (scale.table(), None),
    }.items():
        begin, end = (f"<!-- {name}: {word} -->" for word in ("begin", "end"))
        head, _, rest = text.partition(begin)
        if end not in rest:
            print(f"benchmarks/readme.py: docs/benchmarks.md has no line {begin} with {end} after it.", file=sys.stderr)
            return 1
        text = f"{head}{begin}\n{short.strip()}\n\n{end}{rest.partition(end)[2]}"
        if whole is not None:
            (RESULTS / f"{name}.md").write_text(whole.strip() + "\n")
    path.write_text(text)
    return 0


def quality(shown: tuple[str, ...]) -> str:
    """Returns the rows of samplers.py whose names begin so."""
    chosen = {
        task: [row for row in rows if row["sampler"].startswith(shown) and row["sampler"].endswith(")")]
        for task, rows in samplers.saved().items()
    }
    return "\n".join(lines_of(chosen))


def steps() -> tuple[str, str]:
    """Returns the ratios of e_step.py on the page's CPU, and all that is known of every variant."""
    rows: dict[tuple[str, str], dict[str, Measurement]] = {}
    for m in load("e_step"):
        if "threads" in m.environment["device"]:
            rows.setdefault((m.op, m.shape), {})[m.backend] = m
    for key, row in rows.items():  # ratios are of one run
        commit = row["emfast bf16"].environment["commit"]
        rows[key] = {name: m for name, m in row.items() if m.environment["commit"] == commit}
    names = [name for name in VARIANTS if any(name in row for row in rows.values())]
    heads = [name.replace("compile", "torch.compile,").replace("fp32", "float32") for name in names[1:]]
    short = [f"| work | eager float32 | {' | '.join(heads)} |", "|---" * (len(names) + 1) + "|"]
    device = next(iter(rows.values()))["fp32"].environment["device"]
    whole = [f"{device}: `python benchmarks/e_step.py --save --profile`, medians of steps in turn.", ""]
    whole += ["| work | variant | ms (20 % to 80 %) | | of its floor | share of time | commit |", "|---" * 7 + "|"]
    for op, shape in sorted(rows, key=order):
        row, title = rows[op, shape], f"{title_of(op)}, {shape}"
        base = row["fp32"]
        gains = [f"{base.ms / row[name].ms:.2f}x" if name in row else "" for name in names[1:]]
        short.append(f"| {title} | {base.ms:.0f} ms | {' | '.join(gains)} |")
        for name, m in row.items():
            shares = ", ".join(f"{kind} {share:.0%}" for kind, share in (m.shares or {}).items())
            times = f"{m.ms:.1f} ({m.p20:.1f} to {m.p80:.1f})"
            numbers = f"{times} | {base.ms / m.ms:.2f}x | {m.fraction:.0%} | {shares}"
            whole.append(f"| {title} | {name} | {numbers} | {m.environment['commit']} |")
    return "\n".join(short), "\n".join(whole)


GPU_VARIANTS = {  # of e_step.py, and what the table calls them
    "bf16 channels_last": "bf16 channels_last",
    "graph bf16 channels_last": "the same in a CUDA graph",
    "compile quickly bf16 channels_last": "torch.compile, reduce-overhead",
    "compile bf16 channels_last": "torch.compile, max-autotune",
    "emfast fp32": "emfast float32",
    "emfast bf16": "emfast bf16",
}


def gpu() -> tuple[str, str]:
    """Returns the ratios of e_step.py on GPUs, each row of one run, and all that is known of every variant.

    emfast's training step is the one in a graph, which is how `emfast train` runs it.
    """
    runs: dict[tuple[str, str, str, str], dict[str, Measurement]] = {}
    for line in (RESULTS / "e_step.jsonl").read_text().splitlines():
        m = Measurement(**json.loads(line))
        if "threads" not in m.environment["device"]:
            key = (m.environment["device"], m.op, m.shape, m.environment["commit"])
            runs.setdefault(key, {})[m.backend] = m
    ended = {key: row for key, row in runs.items() if "emfast bf16" in row}
    newest = {key[:3]: (key[3], row) for key, row in ended.items()}  # the last run of each work
    heads = {name: head for name, head in GPU_VARIANTS.items() if any(name in row for _, row in newest.values())}
    short = [
        f"| work | official, eager float32 | {' | '.join(heads.values())} | memory of an image, official and emfast |"
    ]
    short += ["|---" * (len(heads) + 3) + "|"]
    whole = ["| device | work | variant | ms (20 % to 80 %) | | of its floor | MB an image | share of time | commit |"]
    whole += ["|---" * 9 + "|"]
    for (_, op, shape), (_, row) in sorted(newest.items(), key=lambda item: order(item[0][1:])):
        title, base = f"{title_of(op)}, {shape}", row["fp32"]
        shown = dict(row)
        if op.endswith("train"):
            shown["emfast bf16"] = row["graph emfast bf16"]
            shown.pop("emfast fp32", None)  # it was not run in a graph
        cells = [f"{base.ms / shown[name].ms:.2f}x" if name in shown else "" for name in heads]
        memory = " -> ".join(f"{each(m):.1f} MB" for m in (base, shown["emfast bf16"]))
        short.append(f"| {title} | {base.ms:.1f} ms | {' | '.join(cells)} | {memory} |")
    for (device, op, shape, commit), row in sorted(runs.items(), key=lambda item: order(item[0][1:3])):
        for name, m in row.items():
            shares = ", ".join(f"{kind} {share:.0%}" for kind, share in (m.shares or {}).items())
            times = f"{m.ms:.2f} ({m.p20:.2f} to {m.p80:.2f}) | {row['fp32'].ms / m.ms:.2f}x | {m.fraction:.0%}"
            whole.append(
                f"| {device} | {title_of(op)}, {shape} | {name} | {times} | {each(m):.1f} | {shares} | {commit} |"
            )
    devices = ", ".join(dict.fromkeys(f"{m[0]}" for m in newest))
    caption = f"{devices}: `python benchmarks/e_step.py --device cuda --save --profile`, medians of steps in turn."
    return "\n".join([caption, "", *short]), "\n".join([caption, "", *whole])


def each(m: Measurement) -> float:
    """Returns the MB that a step adds at its peak, for each image."""
    return (m.mb or 0.0) / int(m.shape.removeprefix("batch "))


def order(key: tuple[str, str]) -> tuple[int, int]:
    """Returns the place of a row: DPS steps first."""
    network, work = key[0].split()
    return list(WORKS).index(work), list(NETWORKS).index(network)


def title_of(op: str) -> str:
    """Returns what a reader calls `network work`."""
    network, work = op.split()
    return f"{WORKS[work]}, {UNETS.get(network, 'small U-Net')}"


def e_steps() -> str:
    """Returns the throughput of whole E-steps, and how many times the official code's."""
    found: dict[str, dict[str, Any]] = {}
    for line in (RESULTS / "e_step_samplers.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["sampler"], {})[row["network"]] = row
    base, networks = next(iter(found.values())), ("small-64", "cifar-8")
    lines = ["| sampler | small U-Net, batches of 64 | CIFAR-10 U-Net, heads of 8, batches of 4 |", "|---|---|---|"]
    for name, rows in found.items():
        cells = []
        for network in networks:
            row = rows.get(network)
            speed = row["images_per_second"] if row else 0.0
            memory = f", {row['peak_mb']:.0f} MB" if row and row["peak_mb"] is not None else ""
            cells.append(f"{speed:.3g} ({speed / base[network]['images_per_second']:.3g}x{memory})" if row else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
