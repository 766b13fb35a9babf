"""`emfast precompile`: a model's GPU kernels, compiled before there is a GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from emfast._check import check
from emfast._settings import unknown
from emfast.adapters import accelerate
from emfast.commands.display import Display
from emfast.commands.files import check_output
from emfast.compilation.launchers import compiler
from emfast.compilation.precompile import ARCHITECTURES, precompile, trace, write_archive
from emfast.compilation.tune import BATCH, check_gpu, tune
from emfast.diffusion.loading import model_folder
from emfast.em import load_model

NAMES = {f"sm_{number}": number for number in ARCHITECTURES}


@dataclass
class Options:
    """A model's GPU kernels, compiled on a machine that needs no GPU.

    Where TRITON_CACHE_DIR is the folder, and Triton of the same version, nothing is compiled any more.

    Args:
        model: The folder of a run, of its model, or of any diffusers UNet2DModel.
        arch: The architectures, with commas between: sm_80 (A100), sm_86, sm_89, sm_90 (H100), sm_100 (B200), sm_120.
        out: The folder of the kernels, added to if it exists.
        archive: Writes all of the folder to this file too, as in kernels-sm90.tar. Copied to a cluster and named in
            EMFAST_KERNELS there, it is unpacked on each node's own disk, once.
        precision: Compute precision of the network.
        jobs: How many processes compile; 0 is one per CPU, 16 at most.
        tune: Times other configurations of the kernels on the GPU that is here, and notes the faster ones beside them.
    """

    model: str = ""
    arch: str = "sm_90"
    out: str = "triton-cache"
    archive: str | None = None
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    jobs: int = 0
    tune: bool = False

    def __post_init__(self) -> None:
        check(bool(self.model), "precompile", "model", "to be a model folder", "none", "Give --model FOLDER")
        for name in self.arch.split(","):
            if name not in NAMES:
                raise ValueError(unknown("emfast precompile", "an architecture", name, NAMES))
        check(self.jobs >= 0, "precompile", "jobs", "to be >= 0", self.jobs)
        check(not Path(self.out).is_file(), "precompile", "out", "to be a folder", self.out)
        good = self.archive is None or not Path(self.archive).is_dir()
        check(good, "precompile", "archive", "to be a file", self.archive)
        if self.tune:
            check_gpu()


def run(options: Options, yaml: str) -> None:
    """Compiles, and says how much.

    Arguments:
        options: What to compile, and for what.
        yaml: The options as text.
    """
    if options.archive is not None:
        check_output("precompile", options.archive)
    denoiser, shape = load_model(model_folder(options.model))
    check(min(shape[1:]) > 0, "precompile", options.model, "to say the size of its images", "no sample_size")
    accelerate(denoiser.network, dtype=torch.bfloat16 if options.precision == "bfloat16" else None)
    with Display() as display:
        compiled, found = precompile(
            denoiser,
            shape,
            Path(options.out).resolve(),
            architectures=[NAMES[name] for name in options.arch.split(",")],
            jobs=options.jobs or min(os.cpu_count() or 1, 16),
            callback=lambda step, of: display.advance("kernels", step, of),
        )
        text = f"{options.out}: {compiled} kernels compiled, {found} were there already"
        display.console.print(text, soft_wrap=True)
        if compiler() is None:
            text = "No C compiler is here: a node without one cannot launch them. Run this again where gcc is"
            display.console.print(text, soft_wrap=True)
        if options.tune:
            faster = tune(
                trace(denoiser, shape, BATCH),
                Path(options.out).resolve(),
                callback=lambda step, of: display.advance("tuning", step, of),
            )
            text = f"{options.out}: {len(faster)} configurations are faster than those of the tables"
            display.console.print(text, soft_wrap=True)
        if options.archive is not None:
            write_archive(Path(options.out).resolve(), Path(options.archive))
            text = f"{options.archive}: all of it. Set EMFAST_KERNELS to its path where it is to serve"
            display.console.print(text, soft_wrap=True)
