"""The sampler that is learned, on operators that can only be simulated: against Gaussian approximations of them.

    python benchmarks/simulated.py [--tasks counts detector mask-60] [--methods conditional ...] [--seeds 0] [--save]

The demo's images, network and training (`examples/demo.yaml`), fewer sweeps. An approximation is EM of its own, for a
linear operator and Gaussian noise that are close to the detector:

- counts, plain: y as an image, noise of one variance, the mean of that of all counts.
- counts, weighted: each pixel divided by the standard deviation that its own count lets one expect.
- detector, masked: saturated pixels are missing, the others have the noise of rounding.

Measured are the E-step from pure noise with the last model, by the method's own sampler, on the first 256 observations,
and the Frechet distance (FD) of its samples. An evaluation is a forward or a backward pass of an image; a training step
has three. Runs stay in runs/simulated, and are gone on with.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from em import ROOT, changed, truth
from measure import RESULTS, environment, is_dirty
from torch import Tensor

from emfast import random
from emfast.config import Config
from emfast.em import Observations, load_model, prepare, train
from emfast.em.e_step import reconstruct
from emfast.em.evaluation import Evaluator
from emfast.em.inputs import read_inputs
from emfast.em.model import resolve_device
from emfast.em.state import RunFolder
from emfast.evaluation import psnr
from emfast.operators import Detector, Identity, Mask, Operator, PoissonCounts
from emfast.samplers import MMPS, Conditional, ReverseFromObservation, Sampler

FILE = RESULTS / "simulated.jsonl"
PEAK, HIGH, LEVELS = 10.0, 0.0, 16
TASKS: dict[str, Operator] = {
    "counts": PoissonCounts(PEAK),
    "detector": Detector(high=HIGH, levels=LEVELS),
    "mask-60": Mask(missing=0.6),
}
LEARNED, MATCHED = Conditional(steps=10, order=1), MMPS(steps=10, iterations=1, order=1)
MEASURED = 256


class Weighted(Operator):
    """Every pixel in units of its own noise."""

    closed_form = observes_images = True

    def apply(self, x: Tensor, parameters: Any) -> Tensor:
        """Returns w x."""
        return parameters["weight"].to(x) * x

    adjoint = apply

    def regularised_inverse(self, y: Tensor, c: Tensor, parameters: Any, *, iterations: int = 10) -> Tensor:
        """Returns w y / (w^2 + c)."""
        weight = parameters["weight"].to(y)
        return weight * y / (weight.square() + c)


class Approximation(NamedTuple):
    """A linear operator with Gaussian noise in the place of a detector: what it takes for observations."""

    operator: Operator
    sampler: Sampler
    observations: Callable[[Tensor], tuple[dict[str, Tensor], float]]  # of y; and their sigma


def plain(y: Tensor) -> tuple[dict[str, Tensor], float]:
    """Returns counts as images, and the root of the mean of their variances."""
    return {"y": 2 * y / PEAK - 1}, 2 / PEAK * float(y.mean()) ** 0.5


def weighted(y: Tensor) -> tuple[dict[str, Tensor], float]:
    """Returns counts in units of their noise; where none were counted it is that of one."""
    weight = PEAK / 2 / y.clamp_min(1).sqrt()
    return {"y": weight * (2 * y / PEAK - 1), "weight": weight}, 1.0


def masked(y: Tensor) -> tuple[dict[str, Tensor], float]:
    """Returns the readings below the highest, and the noise of rounding."""
    shown = (y < HIGH).float()
    return {"y": y * shown, "mask": shown}, (HIGH + 1) / (LEVELS - 1) / 12**0.5


METHODS: dict[str, dict[str, Approximation | None]] = {
    "counts": {
        "conditional": None,
        "plain": Approximation(Identity(), ReverseFromObservation(steps=10, order=1), plain),
        "weighted": Approximation(Weighted(), MATCHED, weighted),
    },
    "detector": {"conditional": None, "masked": Approximation(Mask(), MATCHED, masked)},
    "mask-60": {"conditional": None},
}


def run(task: str, method: str, seed: int, rounds: int, steps: int, folder: Path) -> dict[str, Any]:
    """Trains a method on a task, and returns what was measured."""
    config = Config.from_yaml(ROOT / "examples" / "demo.yaml")
    fixed = {"operator": TASKS[task], "sampler": LEARNED, "seed": seed, "rounds": rounds, "output": str(folder)}
    config = changed(config, {**fixed, "m_step": {"steps": steps}, "evaluation": {"samples": 0}})
    if TASKS[task].is_simulated:  # what a detector shows is no beginning: saturated images explain all that is observed
        config = changed(config, {"gaussian": {"always": False}})
    inputs, device = read_inputs(config), resolve_device(config.device)
    observed, approximation = inputs.observations, METHODS[task][method]
    given: dict[str, Tensor] | None = None
    if approximation is not None:
        given, sigma = approximation.observations(observed.read(torch.arange(len(observed))))
        config = dataclasses.replace(
            config,
            operator=approximation.operator,
            sampler=approximation.sampler,
            sigma=sigma,
            gaussian=dataclasses.replace(config.gaussian, always=True),
        )
        others = dict(given)
        observed = Observations(approximation.operator, sigma=sigma, y=others.pop("y"), given=others)
    seconds = time.process_time()
    train(config, observations=given)
    seconds = time.process_time() - seconds
    rows = RunFolder(config.output).rows()
    denoiser = prepare(load_model(RunFolder(config.output).model)[0], device, config.precision)
    ids, key = torch.arange(MEASURED), random.derive(seed, "measure")
    assert config.sampler is not None
    x = torch.cat([reconstruct(config.sampler, denoiser, observed, part, seed=key) for part in ids.split(64)])
    clean = truth(inputs, MEASURED)
    shown = inputs.observations.pictures(ids).clamp(-1, 1)
    demo = Config.from_yaml(ROOT / "examples" / "demo.yaml")
    reference = read_inputs(demo).reference
    evaluator = Evaluator(demo.evaluation, reference, inputs.observations.shape, device)
    training = 3 * config.m_step.batch_size * (config.m_step.initial_steps + rounds * config.m_step.steps)
    return {
        "evaluations": round(training + sum((row["network_evaluations"] or 0) * row["observations"] for row in rows)),
        "cpu_seconds": seconds,
        "psnr_observations": float(psnr(shown, clean).mean()),
        "psnr": float(psnr(x, clean).mean()),
        "fd": evaluator.samples(denoiser, RunFolder(folder), rounds, seed, lambda *_: None)[1]["fd"],
    }


def saved() -> list[dict[str, Any]]:
    """Returns all rows that were saved."""
    return [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []


def table(rows: list[dict[str, Any]]) -> str:
    """Returns what was measured, in Markdown."""
    heads = ("task", "E-step", "seed", "evaluations", "CPU seconds", "PSNR of what is observed (dB)", "PSNR (dB)", "FD")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in sorted(rows, key=lambda row: (list(TASKS).index(row["task"]), row["method"], row["seed"])):
        before = "" if row["psnr_observations"] is None else f"{row['psnr_observations']:.2f}"
        cells = [
            row["task"],
            row["method"],
            row["seed"],
            f"{row['evaluations']:,}",
            f"{row['cpu_seconds']:.0f}",
            before,
        ]
        lines.append(f"| {' | '.join(map(str, cells))} | {row['psnr']:.2f} | {row['fd']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="*", help="conditional, plain, weighted, masked; all by default")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--rounds", type=int, default=2, help="sweeps through the observations")
    parser.add_argument("--steps", type=int, default=170, help="training steps of a sweep")
    parser.add_argument("--runs", type=Path, default=Path("runs/simulated"), help="the folder of the runs")
    parser.add_argument("--save", action="store_true", help=f"append to {FILE.name}; refuses a dirty tree")
    options = parser.parse_args()
    if options.save and is_dirty():
        parser.error("the tree has uncommitted changes; commit them, so that the numbers name their code")
    for task in options.tasks:
        for method in METHODS[task]:
            for seed in options.seeds if method in (options.methods or METHODS[task]) else []:
                folder = options.runs / f"{task}-{method}-{options.rounds}x{options.steps}-{seed}"
                sizes = {"rounds": options.rounds, "steps": options.steps}
                row = {"task": task, "method": method, "seed": seed, **sizes}
                row |= run(task, method, seed, **sizes, folder=folder)
                print(json.dumps(row), flush=True)
                if options.save:
                    with FILE.open("a") as file:
                        file.write(json.dumps({**row, **environment(torch.device("cpu"))}) + "\n")


if __name__ == "__main__":
    main()
