"""Compiles the kernels of the networks of e_step.py on all CPUs at once, so that nothing is compiled while it measures.

python benchmarks/precompile.py NETWORK ... [--batch B ...] [--device cuda]

Into Triton's cache, for the GPU that is here; for sm_90 without one.
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
from emfast.diffusion import Denoiser, VPSchedule
from emfast.precompile import precompile


def main() -> int:
    """Compiles, and says how much; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="NETWORK", choices=NETWORKS)
    parser.add_argument("--batch", nargs="+", type=int, default=[64])
    parser.add_argument("--device", default="cpu", type=torch.device)
    options = parser.parse_args()
    cuda, jobs = options.device.type == "cuda", os.cpu_count() or 1
    major, minor = torch.cuda.get_device_capability(options.device) if cuda else (9, 0)
    where = {"folder": Path(triton.knobs.cache.dir), "architectures": [10 * major + minor]}
    for network in options.networks:
        for dtype in (None, torch.bfloat16):
            model = emfast.accelerate(UNet2DModel(**NETWORKS[network][0]), dtype=dtype)
            denoiser, shape = Denoiser(model, VPSchedule.linear()), (model.config.in_channels, 32, 32)
            compiled, found = precompile(denoiser, shape, **where, batches=options.batch, jobs=jobs)
            print(f"{network}, {dtype or torch.float32}: {compiled} kernels compiled, {found} were there already")
    return 0


if __name__ == "__main__":
    sys.exit(main())
