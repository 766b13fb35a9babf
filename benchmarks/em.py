"""Whole methods against each other: the quality of the model against the network evaluations spent on it.

    python benchmarks/em.py [--tasks mask-60] [--methods continuous rounds] [--seeds 0 1 2] [--save]
    python benchmarks/em_show.py             draws one figure per task beside the results

All methods have the same observations, clean images, network and seeds, and are measured alike, by em_measure.py.
A forward pass counts as one evaluation, a backward pass to the input as one, a training step as three of each image.
Runs stay in runs/em and are gone on with; what was measured is not measured again. readme.py writes the table.
Seconds mean something on a machine that does nothing else. Beside other work give `--nice 10`: the row says so, and the
table shows the CPU's seconds alone.
"""

import argparse
import dataclasses
import importlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rivals
from em_measure import measure, truth
from measure import RESULTS, environment, is_dirty
from rivals import Point, prior, ready, timed

from emfast.config import Config
from emfast.data import Images
from emfast.em import load_model, train
from emfast.em.device import resolve_device
from emfast.em.evaluation import Evaluator
from emfast.em.events import Event, Predicted, Progress, RoundFinished
from emfast.em.inputs import Inputs, read_inputs
from emfast.em.state import RunFolder
from emfast.operators import Mask

ROOT = Path(__file__).parent.parent
FILE = RESULTS / "em.jsonl"
UNAIDED = {"data": {"clean_count": 0}}  # without any clean image
# The network of the preset tiny, 1.5 million parameters, and as many training steps as the bound's: for a CPU.
TINY = {
    "network": {"channels": [32, 64, 64, 64], "layers": 1, "attention": [2], "head_dim": 32, "groups": 8},
    "e_step": {"batch_size": 64, "shard_size": 64},
    "m_step": {"initial_steps": 250, "steps": 275, "batch_size": 32, "learning_rate": 5e-3, "warmup": 50, "ema": 0.99},
}
TASKS: dict[str, tuple[str, dict[str, Any]]] = {  # the file of the task, and what differs from it
    "mask-60": ("demo.yaml", {}),
    "mask-85": ("demo.yaml", {"operator": Mask(missing=0.85)}),
    "noise": ("demo_denoising.yaml", {}),
    "blur": ("demo_deblurring.yaml", {}),
    "mask-60-unaided": ("demo.yaml", UNAIDED),
    "noise-unaided": ("demo_denoising.yaml", UNAIDED),
    "blur-unaided": ("demo_deblurring.yaml", UNAIDED),
    "rgb-tiny": ("../benchmarks/rgb.yaml", TINY),
    "rgb": ("../benchmarks/rgb.yaml", {}),  # for a GPU
}
OURS, LONG, TIMES = "continuous", "continuous, 3 times as long", 3
OTHERS = "4,000 clean images"
BOUNDS = {"same images, clean": "truth", OTHERS: "all"}
RIVALS = ("rounds", "emdiffusion", "diem", "sfbd", "ambient", "noise2self", "sure_score", "raw")
METHODS = (OURS, LONG, *RIVALS, *BOUNDS)
UNAIDED_METHODS = (OURS, LONG)  # the bounds are those of the task with clean images
MANY = 4000  # clean images of the second bound


def changed(config: Any, settings: dict[str, Any]) -> Any:
    """Returns a config with other values; those of a group are in a mapping of their own."""
    values = {
        key: changed(getattr(config, key), value) if isinstance(value, dict) else value
        for key, value in settings.items()
    }
    return dataclasses.replace(config, **values)


def rival(method: str) -> Any:
    """Returns the module of a rival."""
    return importlib.import_module(f"rivals.{method}")


def config_of(task: str, method: str, seed: int, folder: Path) -> Config | None:
    """Returns the config of a method on a task; None if the method is none for it."""
    file, settings = TASKS[task]
    config = changed(Config.from_yaml(ROOT / "examples" / file), {**settings, "seed": seed, "output": str(folder)})
    if task.endswith("-unaided") and method not in UNAIDED_METHODS:
        return None
    if method == OTHERS and task.startswith("rgb"):  # all images are observed
        return None
    if method == LONG:
        return dataclasses.replace(config, rounds=TIMES * config.rounds)
    if method in RIVALS:
        tasks = rival(method).TASKS
        if tasks is not None and task not in tasks:
            return None
        config = changed(config, rival(method).SETTINGS)
    return config


def points(method: str, config: Config, inputs: Inputs) -> Iterator[Point]:
    """Yields the models on the way of a method."""
    if method in BOUNDS:
        return bound(config, inputs, BOUNDS[method])
    own = getattr(rival(method), "points", None) if method in RIVALS else None
    return em(config) if own is None else own(config, inputs)  # type: ignore[no-any-return]


class CpuClock:
    """Counts the CPU's seconds of a run of EM, without those of its evaluation, and keeps them in its folder.

    They are known of the rounds that the process made which began the run.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.total, self.since = folder / "cpu.json", 0.0, 0.0
        self.rounds: dict[str, float] = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.whole = False

    def __call__(self, event: Event) -> None:
        """Takes an event of the run."""
        now = time.process_time()
        if isinstance(event, Predicted):
            self.whole, self.since = True, now
        elif isinstance(event, Progress) and event.phase == "samples" and self.since:
            self.total, self.since = self.total + now - self.since, 0.0
        elif isinstance(event, RoundFinished):
            self.since = now
            if self.whole:
                self.rounds[str(event.row["round"])] = self.total
                self.path.write_text(json.dumps(self.rounds))


def em(config: Config) -> Iterator[Point]:
    """Runs EM, and yields the model of every round."""
    clock = CpuClock(Path(config.output))
    train(config, clock)
    folder, spent, seconds = RunFolder(config.output), 0.0, 0.0
    for row in folder.rows():
        steps = {"initial": config.m_step.initial_steps, "warm": config.m_step.steps}
        spent += 3 * config.m_step.batch_size * steps.get(row["phase"], config.m_step.final_steps)
        spent += (row["network_evaluations"] or 0) * row["observations"]
        if row["network_evaluations"] and config.sampler is not None:  # of the scales that were tried
            spent += len(config.e_step.scales) * config.e_step.scale_images * config.sampler.evaluations
        seconds += row["seconds_m_step"] + (row["seconds_e_step"] or 0.0)
        denoiser, _ = load_model(folder.round(row["round"]) / "model")
        cpu = clock.rounds.get(str(row["round"]))
        yield Point(row["round"], round(spent), seconds, cpu, ready(denoiser, config))


def bound(config: Config, inputs: Inputs, which: str) -> Iterator[Point]:
    """Yields a model of clean images, of those observed or of others."""
    folder = Path(config.output)
    images = others(config, inputs)[:] if which == "all" else truth(inputs.observations, len(inputs.observations))
    with timed(folder) as cost:
        denoiser = prior(config, images, folder)
    yield Point(0, 3 * config.m_step.batch_size * rivals.STEPS, **cost, denoiser=denoiser)


def others(config: Config, inputs: Inputs) -> Images:
    """Returns clean images that are not observed."""
    count = len(inputs.observations)
    data = dataclasses.replace(config.data, limit=None)
    images = read_inputs(dataclasses.replace(config, data=data)).observations.images
    if images is None:
        raise ValueError("benchmarks/em.py: expected data.images to be given, got observations alone.")
    return images.subset(slice(count, count + MANY))


def run(
    task: str,
    method: str,
    seed: int,
    runs: Path,
    known: set[tuple[Any, ...]],
    save: bool,
    ends: bool = False,
    rounds: int | None = None,
) -> None:
    """Measures all points of a method on a task that are not known yet; of `rounds` rounds if they are given."""
    folder = runs / task / f"{method.replace(' ', '-').replace(',', '')}-{seed}"
    config = config_of(task, method, seed, folder)
    if config is None:
        return
    stopped = rounds is not None and rounds < config.rounds
    if stopped:
        config = dataclasses.replace(config, rounds=rounds, final_rounds=0)
    last = last_round(config, method)
    if (task, method, seed, last) in known:  # even where its run is not kept
        return
    inputs, device = read_inputs(config), resolve_device(config.device)
    evaluator = Evaluator(config.evaluation, inputs.reference, inputs.observations.shape, device)
    found = list(points(method, config, inputs))
    for point in found[-1:] if ends else found:
        if (task, method, seed, point.round) in known:
            continue
        row = {"task": task, "method": method, "seed": seed, "round": point.round, "evaluations": point.evaluations}
        row |= {"seconds": point.seconds, "cpu_seconds": point.cpu_seconds, "nice": os.nice(0)}
        row |= {"stopped": True} if stopped and point.round else {}
        row |= measure(point, task, config.seed, inputs, evaluator)
        print(json.dumps(row), flush=True)
        if save:
            with FILE.open("a") as file:
                file.write(json.dumps({**row, **environment(device)}) + "\n")


def last_round(config: Config, method: str) -> int:
    """Returns the number of a method's last round."""
    single = method in BOUNDS or (method in RIVALS and hasattr(rival(method), "points"))
    return 0 if single else config.rounds + config.final_rounds


def saved() -> list[dict[str, Any]]:
    """Returns all rows that were saved."""
    return [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tasks", nargs="*", choices=list(TASKS), default=[task for task in TASKS if "rgb" not in task]
    )
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/em"), help="the folder of the runs")
    parser.add_argument("--save", action="store_true", help=f"append to {FILE.name}; refuses a dirty tree")
    parser.add_argument("--ends", action="store_true", help="measure the last model of each method only")
    parser.add_argument("--rounds", type=int, help="stop EM after so many rounds: what takes hours, in part")
    parser.add_argument("--nice", type=int, default=0, help="the niceness to run with, beside other work")
    options = parser.parse_args()
    os.nice(options.nice)
    if options.save and is_dirty():
        parser.error("the tree has uncommitted changes; commit them, so that the numbers name their code")
    known = {(row["task"], row["method"], row["seed"], row["round"]) for row in saved()}
    for task in options.tasks:
        for method in options.methods:
            for seed in options.seeds:
                run(task, method, seed, options.runs, known, options.save, options.ends, options.rounds)


if __name__ == "__main__":
    main()
