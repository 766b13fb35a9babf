"""Whole methods against each other: the quality of the model against the network evaluations spent on it.

    python benchmarks/em.py [--tasks mask-60] [--methods continuous rounds] [--seeds 0 1 2] [--save]
    python benchmarks/em.py --plot           draws one figure per task beside the results

All methods have the same observations, clean images, network and seeds, and are measured alike: PSNR and SSIM of the
task's sampler from pure noise with the model, on the first observations, and the Frechet distance (FD) of its samples.
A forward pass counts as one evaluation, a backward pass to the input as one, a training step as three of each image.
Runs stay in runs/em and are gone on with; what was measured is not measured again. readme.py writes the table.
"""

import argparse
import dataclasses
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import RESULTS, environment, is_dirty

from emfast import random
from emfast.config import Config
from emfast.data import Images
from emfast.diffusion import Denoiser
from emfast.em import load_model, prepare, train
from emfast.em.e_step import reconstruct
from emfast.em.evaluation import Evaluator
from emfast.em.inputs import Inputs, read_inputs
from emfast.em.m_step import m_step
from emfast.em.model import build_model, resolve_device, save_model
from emfast.em.state import RunFolder
from emfast.evaluation import psnr, ssim
from emfast.operators import Mask

ROOT = Path(__file__).parent.parent
FILE = RESULTS / "em.jsonl"
TASKS = {  # the file of the task, and what differs from it
    "mask-60": ("demo.yaml", {}),
    "mask-85": ("demo.yaml", {"operator": Mask(missing=0.85)}),
    "noise": ("demo_denoising.yaml", {}),
    "blur": ("demo_deblurring.yaml", {}),
}
OURS, BOUNDS = "continuous", {"same images, clean": "truth", "4,000 clean images": "all"}
RIVALS = ("rounds", "emdiffusion", "diem", "sfbd")
METHODS = (OURS, *RIVALS, *BOUNDS)
MEASURED = 256  # observations
MANY = 4000  # clean images of the second bound
BOUND_STEPS = 1350  # of the training of either bound: no fewer than any method here has


class Point(NamedTuple):
    """A model on the way of a method, and what was spent until it was there."""

    round: int
    evaluations: int
    seconds: float
    denoiser: Denoiser


def changed(config: Any, settings: dict[str, Any]) -> Any:
    """Returns a config with other values; those of a group are in a mapping of their own."""
    values = {
        key: changed(getattr(config, key), value) if isinstance(value, dict) else value
        for key, value in settings.items()
    }
    return dataclasses.replace(config, **values)


def config_of(task: str, method: str, seed: int, folder: Path) -> Config | None:
    """Returns the config of a method on a task; None if the method is none for it."""
    file, settings = TASKS[task]
    config = changed(Config.from_yaml(ROOT / "examples" / file), {**settings, "seed": seed, "output": str(folder)})
    if method in RIVALS:
        rival = importlib.import_module(f"rivals.{method}")
        if rival.TASKS is not None and task not in rival.TASKS:
            return None
        config = changed(config, rival.SETTINGS)
    return config


def em(config: Config) -> Iterator[Point]:
    """Runs EM, and yields the model of every round."""
    device = resolve_device(config.device)
    train(config)
    folder, spent, seconds = RunFolder(config.output), 0.0, 0.0
    for row in folder.rows():
        steps = {"initial": config.m_step.initial_steps, "warm": config.m_step.steps}
        spent += 3 * config.m_step.batch_size * steps.get(row["phase"], config.m_step.final_steps)
        spent += (row["network_evaluations"] or 0) * row["observations"]
        seconds += row["seconds_m_step"] + (row["seconds_e_step"] or 0.0)
        denoiser, _ = load_model(folder.round(row["round"]) / "model")
        yield Point(row["round"], round(spent), seconds, prepare(denoiser, device, config.precision))


def bound(config: Config, inputs: Inputs, which: str) -> Iterator[Point]:
    """Yields a model of clean images, of those observed or of others."""
    device, folder = resolve_device(config.device), Path(config.output)
    images = truth(inputs, len(inputs.observations))
    if which == "all":
        images = others(config, inputs)[:]
    if not (folder / "model").exists():
        denoiser, scheduler = build_model(config.network, inputs.observations.shape, config.seed)
        checkpoint = folder / "training.safetensors"
        denoiser = prepare(denoiser, device, config.precision)
        m_step(denoiser, images, steps=BOUND_STEPS, config=config.m_step, seed=config.seed, checkpoint=checkpoint)
        save_model(denoiser, scheduler, folder / "model")
    denoiser, _ = load_model(folder / "model")
    yield Point(0, 3 * config.m_step.batch_size * BOUND_STEPS, 0.0, prepare(denoiser, device, config.precision))


def truth(inputs: Inputs, count: int) -> torch.Tensor:
    """Returns the images behind the first observations."""
    images = inputs.observations.truth(torch.arange(count))
    if images is None:
        raise ValueError("benchmarks/em.py: expected the observations to be simulated, got none of known truth.")
    return images


def others(config: Config, inputs: Inputs) -> Images:
    """Returns clean images that are not observed."""
    count = len(inputs.observations)
    data = dataclasses.replace(config.data, limit=None)
    images = read_inputs(dataclasses.replace(config, data=data)).observations.images
    if images is None:
        raise ValueError("benchmarks/em.py: expected data.images to be given, got observations alone.")
    return images.subset(slice(count, count + MANY))


def measure(point: Point, config: Config, inputs: Inputs, evaluator: Evaluator) -> dict[str, Any]:
    """Returns the quality of a model."""
    ids = torch.arange(min(MEASURED, len(inputs.observations)))
    seed = random.derive(config.seed, "measure")
    parts = [reconstruct(config.sampler, point.denoiser, inputs.observations, i, seed=seed) for i in ids.split(64)]
    x, clean = torch.cat(parts), truth(inputs, len(ids))
    fd = evaluator.samples(point.denoiser, config.seed)[1]["fd"]
    return {"psnr": float(psnr(x, clean).mean()), "ssim": float(ssim(x, clean).mean()), "fd": fd}


def run(
    task: str, method: str, seed: int, runs: Path, known: set[tuple[Any, ...]], save: bool, ends: bool = False
) -> None:
    """Measures all points of a method on a task that are not known yet."""
    folder = runs / task / f"{method.replace(' ', '-').replace(',', '')}-{seed}"
    config = config_of(task, method, seed, folder)
    if config is None:
        return
    last = 0 if method in BOUNDS else config.rounds + config.final_rounds
    if (task, method, seed, last) in known:  # even where its run is not kept
        return
    inputs, device = read_inputs(config), resolve_device(config.device)
    evaluator = Evaluator(config.evaluation, inputs.reference, inputs.observations.shape, device)
    common = config_of(task, OURS, seed, folder) or config  # one sampler measures all models of a task
    points = list(bound(config, inputs, BOUNDS[method]) if method in BOUNDS else em(config))
    for point in points[-1:] if ends else points:
        if (task, method, seed, point.round) in known:
            continue
        row = {"task": task, "method": method, "seed": seed, "round": point.round, "evaluations": point.evaluations}
        row |= {"seconds": point.seconds, **measure(point, common, inputs, evaluator)}
        print(json.dumps(row), flush=True)
        if save:
            with FILE.open("a") as file:
                file.write(json.dumps({**row, **environment(device)}) + "\n")


def saved() -> list[dict[str, Any]]:
    """Returns all rows that were saved."""
    return [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the end of every method on every task, mean and spread over the seeds, in Markdown."""
    lines = ["| task | method | seeds | evaluations | PSNR (dB) | SSIM | FD |", "|---" * 7 + "|"]
    for task in TASKS:
        for method in METHODS:
            if config_of(task, method, 0, Path("unused")) is None:
                continue
            runs: dict[int, dict[str, Any]] = {}
            for row in rows:
                if (row["task"], row["method"]) == (task, method):
                    runs[row["seed"]] = max(row, runs.get(row["seed"], row), key=lambda r: r["round"])
            cells = ["not run", "", "", ""]
            if runs:
                ends = list(runs.values())
                cells = [f"{ends[0]['evaluations']:,}", *(spread([end[key] for end in ends]) for key in KEYS)]
            lines.append(f"| {task} | {method} | {len(runs) or ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


KEYS = ("psnr", "ssim", "fd")


def spread(values: list[float]) -> str:
    """Returns a mean, and of several values their standard deviation."""
    numbers = torch.tensor(values, dtype=torch.float64)
    text = f"{float(numbers.mean()):.3g}" if float(numbers.mean()) < 10 else f"{float(numbers.mean()):.2f}"
    return text if len(values) < 2 else f"{text} ± {float(numbers.std()):.2g}"


def draw(task: str, rows: list[dict[str, Any]], path: Path) -> None:
    """Draws PSNR and FD against evaluations, a line a method and seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    lines = sorted({(METHODS.index(row["method"]), row["seed"]) for row in rows if row["task"] == task})
    for place, seed in lines:
        line = [row for row in rows if (row["task"], row["method"], row["seed"]) == (task, METHODS[place], seed)]
        line.sort(key=lambda row: row["evaluations"])
        for axis, key in zip(axes, ("psnr", "fd"), strict=True):
            values = ([row["evaluations"] for row in line], [row[key] for row in line])
            axis.plot(*values, "o-", color=f"C{place}", label=None if seed else METHODS[place], markersize=4)
    for axis, text in zip(axes, ("PSNR [dB]", "Frechet distance"), strict=True):
        axis.set(xscale="log", xlabel="network evaluations", ylabel=text)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle(task)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/em"), help="the folder of the runs")
    parser.add_argument("--save", action="store_true", help=f"append to {FILE.name}; refuses a dirty tree")
    parser.add_argument("--ends", action="store_true", help="measure the last model of each method only")
    parser.add_argument("--plot", action="store_true", help="draw what is saved and stop")
    options = parser.parse_args()
    if options.plot:
        for task in {row["task"] for row in saved()}:
            draw(task, saved(), FILE.with_name(f"em_{task}.png"))
        return
    if options.save and is_dirty():
        parser.error("the tree has uncommitted changes; commit them, so that the numbers name their code")
    known = {(row["task"], row["method"], row["seed"], row["round"]) for row in saved()}
    for task in options.tasks:
        for method in options.methods:
            for seed in options.seeds:
                run(task, method, seed, options.runs, known, options.save, options.ends)


if __name__ == "__main__":
    main()
