"""`emfast sample`: images from a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from emfast._check import MANY, check
from emfast.commands.display import Display
from emfast.commands.files import check_output, write_images
from emfast.diffusion.loading import model_folder
from emfast.em import load_model, prepare
from emfast.em.device import resolve_device
from emfast.graph import graphs
from emfast.reporting import save_grid
from emfast.samplers import Prior


@dataclass
class Options:
    """Images from a trained model.

    Args:
        model: The folder of a run, of its model, or of any diffusers UNet2DModel.
        count: How many images.
        output: The .npz file for them (`images`, float32 in [-1, 1]); a .png of the same name shows them.
        steps: Sampling steps, one network evaluation each.
        eta: 0 for deterministic (DDIM) steps, 1 for ancestral (DDPM) steps.
        seed: Image i is that of (seed, i), whatever the count and the batch size.
        batch_size: Images sampled together.
        size: Pixels a side; by default those of the model's images.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        precision: Compute precision; auto: bfloat16 where the hardware is good at it.
    """

    model: str
    count: int = 64
    output: str = "samples.npz"
    steps: int = 50
    eta: float = 0.0
    seed: int = 0
    batch_size: int = 64
    size: int | None = None
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        check(0 < self.count <= MANY, "sample", "count", f"to be in 1 ... {MANY}", self.count)
        check(self.batch_size > 0, "sample", "batch_size", "to be positive", self.batch_size)
        check(self.size is None or self.size > 0, "sample", "size", "to be positive", self.size)
        check(self.steps > 0, "sample", "steps", "to be positive", self.steps)
        check(Path(self.output).suffix == ".npz", "sample", "output", "to end in .npz", self.output)


def run(options: Options, yaml: str) -> None:
    """Samples, and writes the images and their picture.

    Arguments:
        options: What to sample.
        yaml: The options as text.
    """
    check_output("sample", options.output)
    device = resolve_device(options.device)
    denoiser, shape = load_model(model_folder(options.model))
    shape = shape if options.size is None else (shape[0], options.size, options.size)
    check(min(shape) > 0, "sample", options.model, "to say the size of its images", "no sample_size", "Give --size")
    prepare(denoiser, device, options.precision)
    sampler = Prior(steps=options.steps, eta=options.eta)
    images = torch.empty(options.count, *shape)  # if there is no memory for them it is said now
    with Display() as display, graphs():
        for ids in torch.arange(options.count, device=device).split(options.batch_size):
            done, size = int(ids[0]), len(ids)

            def advance(step: int, of: int, done: int = done, size: int = size) -> None:
                display.advance("samples", done * of + step * size, options.count * of)

            x = sampler.sample(denoiser, shape, ids=ids, seed=options.seed, callback=advance)
            images[done : done + size] = x.cpu()
        check(bool(images.isfinite().all()), "sample", "the images", "to be finite", "NaN or infinity")
        write_images(options.output, images)
        picture = save_grid(Path(options.output).with_suffix(".png"), images)
    display.console.print(f"Images: {options.output}\nPicture: {picture}", soft_wrap=True)
