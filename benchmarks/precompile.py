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
from emfast.compilation.compiling import Call
from emfast.compilation.precompile import compile_calls, trace
from emfast.diffusion import Denoiser, VPSchedule


def main() -> int:
    """Compiles, and says how much; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="NETWORK", choices=NETWORKS)
    parser.add_argument("--batch", nargs="+", type=int, default=[64])
    parser.add_argument("--device", default="cpu", type=torch.device)
    options = parser.parse_args()
    cuda, jobs = options.device.type == "cuda", os.cpu_count() or 1
    major, minor = torch.cuda.get_device_capability(options.device) if cuda else (9, 0)
    calls: dict[Call, None] = {}
    for network in options.networks:
        for dtype in (None, torch.bfloat16):
            model = emfast.accelerate(UNet2DModel(**NETWORKS[network][0]), dtype=dtype)
            denoiser, shape = Denoiser(model, VPSchedule.linear()), (model.config.in_channels, 32, 32)
            for batch in options.batch:
                calls |= dict.fromkeys(trace(denoiser, shape, batch))
    folder, architectures = Path(triton.knobs.cache.dir), [10 * major + minor]
    compiled, found = compile_calls(list(calls), folder, architectures=architectures, jobs=jobs)
    print(f"{', '.join(options.networks)}: {compiled} kernels compiled, {found} were there already")
    return 0


if __name__ == "__main__":
    sys.exit(main())
