"""Quality per network evaluation: every sampler at several budgets, on three tasks with known truth.

    python benchmarks/samplers.py --prior runs/prior [--data TRAIN --test TEST --size 32] [--images 250] [--save]
    python benchmarks/samplers.py --plot           draws one figure per task beside the results

readme.py writes the tables of what is saved.

The prior is trained on the images of --data first, unless the folder holds one; by default on the embedded sample.
A backward pass to the input counts as one evaluation.

coverage: the share of unobserved pixels whose truth lies between the least and the greatest of 4 samples. 60 % for a
    perfect posterior sampler; less means that its samples vary too little.
variance: the total variance of the samples over that of the exact posterior, where the prior is a Gaussian with the
    mean and covariance of the training images, so that both are known. 100 % for a perfect posterior sampler.
"""

import argparse
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from measure import environment, is_dirty
from samplers_gaussian import variance_ratio
from samplers_show import draw, lines_of

from emfast.config import MStepConfig, NetworkConfig
from emfast.data import load
from emfast.em import load_model, prepare
from emfast.em.device import resolve_device
from emfast.em.m_step import m_step
from emfast.em.model import build_model, save_model
from emfast.evaluation import default_features, frechet_distance, psnr, ssim
from emfast.graph import Graphed
from emfast.operators import GaussianBlur, Identity, Mask
from emfast.samplers import DAPS, DPS, MMPS, DiffPIR, PiGDM, ReverseFromObservation, choose_scale, data_misfit

RESULTS = Path(__file__).parent / "results" / "samplers.jsonl"
NETWORK = NetworkConfig(channels=[32, 64, 64], layers=1, attention=[2], head_dim=8, groups=8)
TASKS = {
    "inpainting": (Mask(missing=0.6), 0.0),
    "denoising": (Identity(), 0.2),
    "deblurring": (GaussianBlur(size=9, std=2.0), 0.01),
}
SAMPLERS = [
    MMPS(steps=10, iterations=1),
    MMPS(steps=10, iterations=2),
    MMPS(steps=20, iterations=1),
    MMPS(steps=20, iterations=2),
    MMPS(steps=20, iterations=2, order=1),
    MMPS(steps=50, iterations=2),
    PiGDM(steps=25),
    DiffPIR(steps=20),
    DiffPIR(steps=50),
    DAPS(steps=25, flow=2),
    DPS(steps=50),
    DPS(steps=100),
]
OWN = {"denoising": [ReverseFromObservation(steps=10), ReverseFromObservation(steps=20)]}
PAPER = DPS(steps=1000)
SCALES = (0.3, 1.0, 3.0)  # of DPS; the paper's rule takes the one with the smallest data misfit


def prior(options, device):
    """Returns the denoiser in a folder, trained on the clean images first if there is none."""
    if not options.prior.exists():
        images = load(options.data, size=options.size)[:]
        denoiser, scheduler = build_model(NETWORK, tuple(images.shape[1:]), seed=0)
        prepare(denoiser, device)
        config = MStepConfig(batch_size=64, learning_rate=1e-3, warmup=100, ema=0.999, checkpoint=1000)
        checkpoint = options.prior.with_suffix(".training.safetensors")
        m_step(denoiser, images, steps=options.steps, config=config, seed=0, checkpoint=checkpoint)
        save_model(denoiser, scheduler, options.prior)
        checkpoint.unlink(missing_ok=True)
    denoiser, _ = load_model(options.prior, device)
    return prepare(denoiser, device, options.precision)


def measure(sampler, denoiser, truth, reference, operator, sigma):
    """Returns one row: quality, evaluations and seconds of a sampler."""
    device = truth.device
    ids = torch.arange(len(truth), device=device)
    y = operator.observe(truth, sigma, ids=ids)
    start = time.perf_counter()
    batches = [ids[part] for part in torch.arange(len(ids)).split(64)]
    parts = [sampler(denoiser, y[part], operator, sigma=sigma, ids=part, seed=0) for part in batches]
    x = torch.cat(parts)
    if x.is_cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    forward = count(denoiser, partial(sampler, denoiser, y[:1], operator, sigma=sigma, ids=ids[:1]))
    features = default_features(x.shape[1]).to(device)
    few = slice(0, 32)
    draws = 3 if sampler.evaluations <= 300 else 0
    again = [sampler(denoiser, y[few], operator, sigma=sigma, ids=ids[few], seed=1 + i) for i in range(draws)]
    return {
        "sampler": name(sampler),
        "evaluations": sampler.evaluations,
        "psnr": float(psnr(x, truth).mean()),
        "ssim": float(ssim(x, truth).mean()),
        "misfit": float(data_misfit(x, y, operator, ids).mean()),
        "fd": float(frechet_distance(features.extract(x), reference)),
        "coverage": coverage(truth[few], torch.stack([x[few], *again])) if again else None,
        "forward": forward,
        "backward": sampler.evaluations - forward,
        "seconds_per_image": seconds / len(x),
    }


def count(denoiser, sample):
    """Returns the forward passes of a call. No CUDA graph replays them: they are calls of Python."""
    calls = []
    hook = denoiser.network.register_forward_hook(lambda *_: calls.append(1))
    with patch.object(Graphed, "__call__", lambda self, *tensors: self.function(*tensors)):
        sample()
    hook.remove()
    return len(calls)


def scaled(sampler, denoiser, truth, operator, sigma):
    """Returns the sampler, of DPS with the scale that the paper's rule chooses."""
    if not isinstance(sampler, DPS):
        return sampler
    y = operator.observe(truth, sigma)
    scale, _ = choose_scale(replace(sampler, scale=1.0), denoiser, y, operator, candidates=SCALES)
    return replace(sampler, scale=scale)


def coverage(truth, samples):
    """Returns the share of uncertain pixels whose truth lies in the range of the samples, (K, B, C, H, W)."""
    # Observed pixels are known: their samples agree. At the ends of the range clipping decides.
    unknown = (samples.std(0) > 1e-2) & (truth.abs() < 0.95)
    inside = (truth >= samples.min(0).values) & (truth <= samples.max(0).values)
    return float(inside[unknown].float().mean())


def run(options):
    """Measures what the command line asks for."""
    device = resolve_device(options.device)
    denoiser = prior(options, device)
    images, test = load(options.data, size=options.size), load(options.test, size=options.size)
    truth = test[: options.images].to(device)
    reference = default_features(truth.shape[1]).to(device).extract(images[torch.arange(min(len(images), 10000))])
    about = {"data": Path(options.data).name, "size": truth.shape[-1], **environment(device)}
    for task in options.tasks:
        operator, sigma = TASKS[task]
        rows = []
        samplers = [*SAMPLERS, *OWN.get(task, []), *([PAPER] if options.paper else [])]
        for sampler in [s for s in samplers if not options.only or name(s).startswith(tuple(options.only))]:
            sampler = scaled(sampler, denoiser, truth[:8], operator, sigma)
            row = {"task": task, "images": len(truth), **measure(sampler, denoiser, truth, reference, operator, sigma)}
            row["sampler"] += "" if options.precision == "auto" else f", {options.precision}"
            row["variance"] = variance_ratio(sampler, images[torch.arange(2000)].to(device), operator, sigma)
            rows.append(row)
            if options.save:
                with RESULTS.open("a") as file:
                    file.write(json.dumps({**row, **about}) + "\n")
            print(json.dumps(row), flush=True)
        print("\n".join(lines_of({task: rows})), flush=True)


def name(sampler):
    """Returns a sampler as the tables have it, with what it was given."""
    own = {"MMPS": ("steps", "iterations", "order"), "DAPS": ("steps", "flow"), "DPS": ("steps", "scale")}
    fields = [f for f in own.get(type(sampler).__name__, ("steps",)) if f != "order" or sampler.order == 1]
    return f"{type(sampler).__name__}({', '.join(f'{field}={getattr(sampler, field)}' for field in fields)})"


def saved():
    """Returns the saved rows by task, of repeated ones the last."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    last = {(row["task"], row["sampler"]): row for row in rows}
    return {task: [row for (of, _), row in last.items() if of == task] for task in TASKS}


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", type=Path, default=Path("runs/prior"), help="the model folder; trained if missing")
    parser.add_argument("--steps", type=int, default=5000, help="training steps of a new prior")
    parser.add_argument("--data", default="sample:train", help="clean images the prior is trained on")
    parser.add_argument("--test", default="sample:test", help="clean images to corrupt")
    parser.add_argument("--size", type=int, default=16, help="pixels a side")
    parser.add_argument("--images", type=int, default=250, help="test images")
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--only", nargs="*", metavar="SAMPLER", help='rows that begin so, "MMPS(steps=20"')
    parser.add_argument("--paper", action="store_true", help="the paper's DPS with 1000 steps too")
    parser.add_argument("--device", default="auto")
    precisions = ["auto", "float32", "bfloat16"]
    parser.add_argument("--precision", choices=precisions, default="auto", help="auto: as emfast train computes")
    parser.add_argument("--save", action="store_true", help=f"append to {RESULTS.name}; refuses a dirty tree")
    parser.add_argument("--plot", action="store_true", help="draw the saved results and stop")
    options = parser.parse_args()
    if options.plot:
        for task, rows in saved().items():
            draw(task, rows, RESULTS.parent / f"samplers_{task}.png")
        return
    if options.save and is_dirty():
        parser.error("the tree has uncommitted changes; commit them, so that the numbers name their code")
    run(options)


if __name__ == "__main__":
    main()
