"""What held-out observations say of a model against the truth, which they do without.

    python benchmarks/held_out.py [--tasks noise] [--method "continuous, 3 times as long"] [--rounds 3 10 30] [--save]

Of runs that em.py has made, with the sampler that `data.held_out` takes and observations of images that nothing was
trained on. PSNR is that of A x where samples and other half are compared: missing pixels, or all that is measured.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from em import METHODS, OURS, RESULTS, ROOT, TASKS, config_of
from em_measure import truth, unseen, variance
from rivals import ready

from emfast.em import Observations, load_model
from emfast.em.held_out import measure_held_out
from emfast.em.inputs import read_inputs
from emfast.em.state import RunFolder
from emfast.samplers import default_sampler

FILE = RESULTS / "held_out.jsonl"
COUNT, DRAWS = 64, 4


def true(denoiser: Any, observations: Observations, ids: torch.Tensor, seed: int) -> dict[str, float]:
    """Returns what `measure_held_out` estimates, of whole observations and with the truth."""
    operator, sigma = observations.operator, observations.sigma
    y, parameters = observations.read(ids), observations.operator.parameters(ids, observations.observed)
    sampler = default_sampler(type(operator))
    draws = [sampler(denoiser, y, operator, sigma=sigma, ids=ids, seed=seed + k) for k in range(DRAWS)]
    a, clean, mask = torch.stack(draws), truth(observations, len(ids)), observations.mask(ids)
    if mask is None:
        a, clean = torch.stack([operator.apply(x, parameters) for x in a]), operator.apply(clean, parameters)
    else:
        missing = (mask == 0).expand_as(clean)
        a, clean = a[:, missing], clean[missing]
    return {"psnr": 10 * math.log10(4 / float((a - clean).square().mean())), "variance": variance(clean, a)}


def table() -> str:
    """Returns the table of docs/benchmarks.md."""
    heads = ("task", "round", "PSNR", "held-out PSNR", "variance", "held-out variance")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in map(json.loads, FILE.read_text().splitlines()):
        keys = ("psnr", "held_out_psnr", "variance", "held_out_variance")
        lines.append(f"| {row['task']} | {row['round']} | {' | '.join(f'{row[key]:.2f}' for key in keys)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints, and with --save keeps, one line per task and round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["noise"])
    parser.add_argument("--method", choices=METHODS, default=OURS)
    parser.add_argument("--rounds", nargs="+", type=int, help="the last one by default")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "em")
    parser.add_argument("--save", action="store_true", help=f"append to {FILE}")
    arguments = parser.parse_args()
    for task in arguments.tasks:
        folder = arguments.runs / task / f"{arguments.method.replace(' ', '-').replace(',', '')}-0"
        config = config_of(task, arguments.method, 0, folder)
        if config is None:
            parser.error(f"{arguments.method} is no method for {task}")
        new, ids = unseen(read_inputs(config)), torch.arange(COUNT)
        for number in arguments.rounds or [RunFolder(folder).rows()[-1]["round"]]:
            denoiser = ready(load_model(RunFolder(folder).round(number) / "model")[0], config)
            row = {"task": task, "method": arguments.method, "round": number, **true(denoiser, new, ids, config.seed)}
            row |= measure_held_out(denoiser, new, ids, seed=config.seed)
            print(json.dumps(row), flush=True)
            if arguments.save:
                with FILE.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
