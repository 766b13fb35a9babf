"""Posterior sampling in Python: a trained model, an operator and observations give clean images.

    python examples/posterior_sampling.py runs/demo/model

The model is any diffusers pipeline or UNet2DModel folder; the run of `make demo` leaves one. Writes restored.png: the
truth, the observations and one posterior sample of each.
"""

import sys

import torch

from emfast.data import load
from emfast.em import load_model
from emfast.evaluation import psnr
from emfast.operators import Mask
from emfast.reporting import save_grid
from emfast.samplers import DPS


def main(folder: str) -> None:
    """Restores images of the embedded sample with 60 % of their pixels missing."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    denoiser, shape = load_model(folder, device)

    ids = torch.arange(8, device=device)  # every observation has an id: masks and noise belong to it
    truth = load("sample:test", size=shape[-1], limit=8)[:].to(device)
    operator = Mask(missing=0.6)
    y = operator.observe(truth, sigma=0.0, ids=ids, seed=0)

    sampler = DPS(steps=100, scale=1.0)
    x = sampler(denoiser, y, operator, sigma=0.0, ids=ids, seed=0)

    print(f"PSNR: observations {psnr(y, truth).mean():.2f} dB, samples {psnr(x, truth).mean():.2f} dB")
    print(save_grid("restored.png", torch.cat((truth, y, x)), columns=8))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/demo/model")
