"""Quality per network evaluation: every sampler at several budgets, on three tasks with known truth.

    python benchmarks/samplers.py --prior runs/prior [--images 64] [--tasks inpainting denoising] [--save]

The prior is trained on the embedded sample of Fashion-MNIST first, unless the folder holds one. A backward pass to the
input counts as one evaluation. `coverage` is the share of pixels whose truth lies between the least and the greatest of
4 samples, to be compared with the 60 % of a perfect posterior sampler: less means that the samples vary too little.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from measure import environment, is_dirty

from emfast.config import MStepConfig, NetworkConfig
from emfast.data import load
from emfast.em import load_model
from emfast.em.m_step import m_step
from emfast.em.model import build_model, resolve_device, resolve_precision, save_model
from emfast.features import default_features
from emfast.metrics import frechet_distance, psnr, ssim
from emfast.operators import GaussianBlur, Identity, Mask
from emfast.samplers import DAPS, DPS, MMPS, DiffPIR, PiGDM, ReverseFromObservation, data_misfit

RESULTS = Path(__file__).parent / "results" / "samplers.jsonl"
NETWORK = NetworkConfig(channels=[32, 64, 64], layers=1, attention=[2], head_dim=64, groups=8)
TASKS = {
    "inpainting": (Mask(missing=0.6), 0.0),
    "denoising": (Identity(), 0.2),
    "deblurring": (GaussianBlur(size=9, std=2.0), 0.01),
}
SAMPLERS = [
    DPS(steps=1000),
    DPS(steps=100),
    DPS(steps=50),
    PiGDM(steps=50),
    PiGDM(steps=25),
    MMPS(steps=40, iterations=1),
    MMPS(steps=20, iterations=2),
    MMPS(steps=20, iterations=5),
    MMPS(steps=10, iterations=2),
    DiffPIR(steps=100),
    DiffPIR(steps=50),
    DiffPIR(steps=25),
    DAPS(steps=50, flow=1),
    DAPS(steps=25, flow=4),
]


def prior(folder, size, steps, device):
    """Returns the denoiser in a folder, trained on all clean images of the sample if there is none."""
    if not folder.exists():
        denoiser, scheduler = build_model(NETWORK, (1, size, size), seed=0)
        denoiser.dtype = resolve_precision("auto", device)
        config = MStepConfig(batch_size=64, learning_rate=1e-3, warmup=50, ema=0.999, checkpoint=500)
        images = load("sample:train", size=size)[:]
        checkpoint = folder.with_suffix(".training.safetensors")
        m_step(denoiser.to(device), images, steps=steps, config=config, seed=0, checkpoint=checkpoint)
        save_model(denoiser, scheduler, folder)
        checkpoint.unlink(missing_ok=True)
    denoiser, _ = load_model(folder, device)
    denoiser.dtype = resolve_precision("auto", device)
    return denoiser


def measure(sampler, denoiser, truth, operator, sigma):
    """Returns one row: quality, evaluations and seconds of a sampler."""
    ids = torch.arange(len(truth), device=truth.device)
    y = operator.observe(truth, sigma, ids=ids)
    start = time.perf_counter()
    samples = [sampler(denoiser, y, operator, sigma=sigma, ids=ids, seed=0)]
    seconds = time.perf_counter() - start
    few = slice(0, 16)
    draws = 3 if sampler.evaluations <= 400 else 0
    again = [sampler(denoiser, y[few], operator, sigma=sigma, ids=ids[few], seed=1 + i) for i in range(draws)]
    x = samples[0]
    features = default_features(x.shape[1]).to(x.device)
    row = {
        "psnr": float(psnr(x, truth).mean()),
        "ssim": float(ssim(x, truth).mean()),
        "misfit": float(data_misfit(x, y, operator, ids).mean()),
        "fd": float(frechet_distance(features.extract(x), features.extract(load("sample:train", size=x.shape[-1])))),
        "evaluations": sampler.evaluations,
        "seconds_per_image": seconds / len(x),
        "coverage": None,
    }
    if again:
        stack = torch.stack([x[few], *again])
        # Observed pixels are known: their samples agree. At the ends of the range clipping decides.
        unknown = (stack.std(0) > 1e-2) & (truth[few].abs() < 0.95)
        inside = (truth[few] >= stack.min(0).values) & (truth[few] <= stack.max(0).values)
        row["coverage"] = float(inside[unknown].float().mean())
    return row


def show(task, rows):
    """Prints the table of a task in Markdown."""
    print(f"\n{task}\n\n| sampler | evaluations | PSNR | SSIM | misfit | FD | coverage | ms per image |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        coverage = "" if row["coverage"] is None else f"{100 * row['coverage']:.0f} %"
        numbers = f"{row['psnr']:.2f} | {row['ssim']:.3f} | {row['misfit']:.2e} | {row['fd']:.2f} | {coverage}"
        print(f"| `{row['sampler']}` | {row['evaluations']} | {numbers} | {1000 * row['seconds_per_image']:.0f} |")


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prior", type=Path, default=Path("runs/prior"), help="the model folder; trained if missing")
    parser.add_argument("--steps", type=int, default=3000, help="training steps of a new prior")
    parser.add_argument("--size", type=int, default=16, help="pixels a side")
    parser.add_argument("--images", type=int, default=64, help="test images")
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--save", action="store_true", help=f"append to {RESULTS.name}; refuses a dirty tree")
    options = parser.parse_args()
    if options.save and is_dirty():
        parser.error("the tree has uncommitted changes; commit them, so that the numbers name their code")
    device = resolve_device(options.device)
    denoiser = prior(options.prior, options.size, options.steps, device)
    truth = load("sample:test", size=options.size)[: options.images].to(device)
    for task in options.tasks:
        operator, sigma = TASKS[task]
        rows = []
        for sampler in [*SAMPLERS, *([ReverseFromObservation(steps=20)] if task == "denoising" else [])]:
            name = repr(sampler).replace(", clip=True", "").replace(", sigma_min=0.01", "")
            rows.append({"task": task, "sampler": name, **measure(sampler, denoiser, truth, operator, sigma)})
            if options.save:
                about = {"images": len(truth), "size": options.size, **environment(device)}
                with RESULTS.open("a") as file:
                    file.write(json.dumps({**rows[-1], **about}) + "\n")
        show(task, rows)


if __name__ == "__main__":
    main()
