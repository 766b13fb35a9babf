"""Compiles the kernels of the networks of e_step.py on all CPUs at once, so that nothing is compiled while it measures.

python benchmarks/precompile.py NETWORK ... [--batch B ...] [--device cuda]

A network may be that of a config file of `emfast train` too. Into Triton's cache, for the GPU that is here; for sm_90
without one.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
import triton
from diffusers import UNet2DModel
from e_step import NETWORKS

import emfast
from emfast.compilation.compiling import Call
from emfast.compilation.precompile import compile_calls, trace
from emfast.config import Config
from emfast.diffusion import Denoiser, VPSchedule
from emfast.em.inputs import read_inputs
from emfast.em.model import build_model


def build(name: str) -> tuple[Denoiser, tuple[int, int, int]]:
    """Returns a network's denoiser, and the shape of its images."""
    if name in NETWORKS:
        model = UNet2DModel(**NETWORKS[name][0])
        return Denoiser(model, VPSchedule.linear()), (model.config.in_channels, 32, 32)
    config = Config.from_yaml(name)
    shape = read_inputs(config).observations.shape
    return build_model(config.network, shape, config.seed)[0], shape


def main() -> int:
    """Compiles, and says how much; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="NETWORK", help=f"{', '.join(NETWORKS)}, or a config file")
    parser.add_argument("--batch", nargs="+", type=int, default=[64])
    parser.add_argument("--device", default="cpu", type=torch.device)
    options = parser.parse_args()
    cuda, jobs = options.device.type == "cuda", os.cpu_count() or 1
    major, minor = torch.cuda.get_device_capability(options.device) if cuda else (9, 0)
    calls: dict[Call, None] = {}
    for network in options.networks:
        for dtype in (None, torch.bfloat16):
            denoiser, shape = build(network)
            emfast.accelerate(denoiser.network, dtype=dtype)
            for batch in options.batch:
                calls |= dict.fromkeys(trace(denoiser, shape, batch))
    folder, architectures = Path(triton.knobs.cache.dir), [10 * major + minor]
    compiled, found = compile_calls(list(calls), folder, architectures=architectures, jobs=jobs)
    print(f"{', '.join(options.networks)}: {compiled} kernels compiled, {found} were there already")
    return 0


if __name__ == "__main__":
    sys.exit(main())
