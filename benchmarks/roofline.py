"""Writes ROOFLINE.md: what one DPS step must move, compute and launch on a GPU, and how long that takes on paper.

python benchmarks/roofline.py [--network cifar-8] [--batch 256]

Walks the network on fake tensors, forward and backward to the input, with every operator that it calls. No GPU, and no
measurement: a time is the larger of bytes / bandwidth, FLOPs / rate and exponentials / rate.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from compiled import ISSUE
from diffusers import UNet2DModel
from e_step import NETWORKS, dps
from measure import RESULTS
from profiles import shares
from torch._subclasses.fake_tensor import FakeTensorMode
from walk import BANDWIDTH, EXPONENTIALS, KINDS, RATE, Node, Walk, fused

import emfast
from emfast.compilation.compiling import compiling, launch
from emfast.diffusion import Denoiser, VPSchedule
from emfast.kernels._tuned import asking
from emfast.nn.rehearsal import rehearsed
from emfast.operators import Mask
from emfast.samplers import DPS
from emfast.samplers.problem import Problem, transitions

PAGE = Path(__file__).parent / "ROOFLINE.md"
ROWS = 40  # of the table of operators


def step_of(network: str, batch: int, ours: bool, device: torch.device) -> Callable[[], Any]:
    """Returns a DPS step: as the published code has it in bfloat16, or ours."""
    torch.manual_seed(0)
    model = UNet2DModel(**NETWORKS[network][0]).eval().requires_grad_(False)
    channels, size = model.config.in_channels, model.config.sample_size
    if ours:
        emfast.accelerate(model, dtype=torch.bfloat16)
    else:
        model.to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    denoiser, sampler, operator = Denoiser(model, VPSchedule.linear()).to(device), DPS(steps=2), Mask(missing=0.6)
    table = transitions(denoiser.schedule, sampler.times(denoiser.schedule, 0.0), 1.0).to(device)
    ids = torch.arange(batch, device=device)
    parameters = operator.parameters(ids, (channels, size, size))

    x, t = torch.randn(batch, channels, size, size, device=device), torch.full((batch,), 500.0, device=device)
    if not ours:
        return partial(dps(lambda x: model(x.bfloat16(), t).sample.to(x.dtype), x), x)
    problem = Problem(denoiser, x, operator, parameters, 0.0, ids, 0, table)
    return partial(sampler.step, problem, x, x, torch.zeros((), dtype=torch.int64, device=device))


def walk(network: str, batch: int, ours: bool) -> list[Node]:
    """Returns the nodes of a DPS step on fake tensors."""
    step = step_of(network, batch, ours, torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True), rehearsed():
        for _ in range(2):  # the first call prepares the weights
            with Walk() as found:
                step()
    return found.nodes


def by_kind(variants: dict[str, list[Node]]) -> list[str]:
    """Returns the table of kinds of op, a row for each and one for all."""
    head = " | ".join(f"{name}: launches | GB | ms" for name in variants)
    lines = [f"| kind | TFLOP | {head} |", "|---" * (2 + 3 * len(variants)) + "|"]
    for kind in (*KINDS, "elementwise", "all"):
        cells = []
        for nodes in variants.values():
            own = [node for node in nodes if kind in (node.kind, "all")]
            moved, ms = sum(node.bytes for node in own) / 1e9, sum(node.ms for node in own)
            cells.append(f"{sum(node.launches for node in own)} | {moved:.2f} | {ms:.2f}")
            flops = sum(node.flops for node in own) / 1e12
        lines.append(f"| {kind} | {flops:.2f} | {' | '.join(cells)} |")
    return lines


class Measured:
    """What a GPU measured of one network and batch; nothing where nothing was saved.

    The operators are those of operators.py. Those of our kernels are from tiles.jsonl, which has them by size and
    layout: so one time serves calls that differ in what is added besides.
    """

    def __init__(self, network: str, batch: int) -> None:
        own = [row for row in rows_of("operators") if (row["network"], row["batch"]) == (network, batch)]
        self.operators = {
            (name, tuple(shape), moved): ms
            for row in own
            if row["variant"] == "ours"
            for name, _, shape, moved, _, ms in row["rows"]
        }
        self.tiles = {row["key"]: row["best_ms"] for row in rows_of("gpu/tiles")}
        found = [row for row in rows_of("profiles") if (row["work"], row["batch"]) == (f"{network} dps", batch)]
        self.profiles = {row["variant"]: row for row in found if "threads" not in row["environment"]["device"]}
        self.device = next((row["environment"]["device"] for row in found), "none")

    def of(self, node: Node) -> float | None:
        """Returns the milliseconds of a call."""
        if node.call and node.kind in ("norm", "attention"):
            with asking() as asked, compiling(90):
                launch(*node.call)
            return next((self.tiles[key] for key in asked if key in self.tiles), None)
        return self.operators.get((node.name, node.shape, node.bytes))

    def by_kind(self) -> list[str]:
        """Returns the table of a step's time by kind of op, in the native network and in ours."""
        names = [name for name in ("bf16 channels_last", "emfast bf16") if name in self.profiles]
        times = {name: shares([tuple(row) for row in self.profiles[name]["rows"]]) for name in names}
        lines = [f"| kind | {' | '.join(f'{name}: ms' for name in names)} |", "|---" * (1 + len(names)) + "|"]
        for kind in dict.fromkeys(kind for name in names for kind in times[name]):
            cells = [f"{times[name].get(kind, 0.0) * self.profiles[name]['ms']:.2f}" for name in names]
            lines.append(f"| {kind} | {' | '.join(cells)} |")
        lines.append(f"| all | {' | '.join(format(self.profiles[name]['ms'], '.2f') for name in names)} |")
        return lines


def rows_of(name: str) -> list[dict[str, Any]]:
    """Returns the lines of a results file."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def by_kernel(nodes: list[Node], measured: Measured) -> list[str]:
    """Returns the table of what ours launches, calls of one operator and shape in one row, the slowest first."""
    rows: dict[tuple[str, tuple[int, ...], int], list[Node]] = {}
    for node in nodes:
        rows.setdefault((node.name, node.shape, node.bytes), []).append(node)
    heads = "operator | result | calls | launches | MB | GFLOP | bound by | ms each | ms | measured, each"
    lines = [f"| {heads} |", "|---" * 10 + "|"]
    ordered = sorted(rows.items(), key=lambda row: -sum(node.ms for node in row[1]))
    for (name, shape, moved), calls in ordered[:ROWS]:
        first = calls[0]
        terms = {
            "bytes": moved / BANDWIDTH,
            "FLOPs": first.flops / RATE,
            "exponentials": first.exponentials / EXPONENTIALS,
            "instructions": first.issue / 1e3,
        }
        cells = (name, " x ".join(map(str, shape)), len(calls), first.launches, f"{moved / 1e6:.1f}")
        times = (
            f"{first.flops / 1e9:.1f}",
            max(terms, key=terms.__getitem__),
            f"{first.ms:.3f}",
            f"{first.ms * len(calls):.2f}",
            "" if (ms := measured.of(first)) is None else f"{ms:.3f}",
        )
        lines.append(f"| {' | '.join(map(str, cells + times))} |")
    rest = [node for _, calls in ordered[ROWS:] for node in calls]
    lines.append(f"| all others | | {len(rest)} | | | | | | {sum(node.ms for node in rest):.2f} | |")
    return lines


def assembled(nodes: list[Node]) -> list[str]:
    """Returns the table of our kernels, those of a call in a row each, the slowest calls first."""
    columns = "kernel | result | warps | registers | stack | shared | resident | instructions | issue | bytes"
    lines = [f"| {columns} |", "|---" * 10 + "|"]
    calls = {node.call: node for node in nodes if node.call}
    for node in sorted(calls.values(), key=lambda node: -node.ms)[:24]:
        for kernel in node.kernels:
            count = f"{kernel.once} + {kernel.trips} x {kernel.loop}" if kernel.loop else f"{kernel.once}"
            cells = (kernel.name, " x ".join(map(str, node.shape)), kernel.warps, kernel.registers, kernel.stack)
            times = (kernel.shared, kernel.resident, count, f"{kernel.ms:.3f}", f"{1e3 * node.bytes / BANDWIDTH:.3f}")
            lines.append(f"| {' | '.join(map(str, cells + times))} |")
    return lines


def main() -> int:
    """Writes the page; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cifar-8", choices=NETWORKS)
    parser.add_argument("--batch", type=int, default=256)
    options = parser.parse_args()
    native, ours = (walk(options.network, options.batch, own) for own in (False, True))
    variants = {"native eager": native, "fused": fused(native), "ours": ours}
    total = {name: sum(node.ms for node in nodes) for name, nodes in variants.items()}
    floor = sum(node.flops for node in ours) / RATE * 1e3
    measured = Measured(options.network, options.batch)
    text = TEXT.format(
        network=options.network,
        batch=options.batch,
        bandwidth=BANDWIDTH / 1e12,
        rate=RATE / 1e12,
        exponentials=EXPONENTIALS / 1e12,
        issue=ISSUE / 1e12,
        kinds="\n".join(by_kind(variants)),
        floor=floor,
        eager=total["native eager"] / total["ours"],
        compiled=total["fused"] / total["ours"],
        fraction=floor / total["ours"],
        kernels="\n".join(by_kernel(ours, measured)),
        device=measured.device,
        measured="\n".join(measured.by_kind()),
        assembled="\n".join(assembled(ours)),
    )
    PAGE.write_text(text)
    print(f"{PAGE}: {', '.join(f'{name} {ms:.1f} ms' for name, ms in total.items())}")
    return 0


TEXT = """# One DPS step on paper

**A prediction by arithmetic**, and beside it what a GPU measured ({device}), where it says so: written by
`python benchmarks/roofline.py` from that and from what `benchmarks/gpu.sh` saved. Network `{network}` of
`benchmarks/e_step.py`, batch {batch}, bfloat16 in channels_last: forward, misfit of a mask, gradient to x_t, update.

A call takes the longest of: its bytes at {bandwidth:.1f} TB/s, its FLOPs at {rate:.0f} TFLOP/s (bfloat16), for
attention its exponentials at {exponentials:.1f} T/s, and for our kernels the issue of their instructions, as compiled
for sm_90, at {issue:.2f} T/s (those of a warp). Every call reads its inputs and writes its results once, whatever the
caches hold. Not counted: gaps between launches (a CUDA graph closes most of them), the part of a tensor core's tile
that is empty (head dimension 8), copies inside library calls. So a time is a lower limit.

- *native eager*: the step of the published code on the native network. Every operator is a kernel, a convolution's
  bias one of its own, a normalisation two passes.
- *fused*: the same, with all merged that a compiler can write itself between two library calls, biases included: what
  `torch.compile` aims at.
- *ours*: the accelerated network and emfast's DPS, as their operators are called today.

{kinds}

FLOPs alone take {floor:.1f} ms. Ours: {eager:.2f}x native eager, {compiled:.2f}x fused, {fraction:.0%} of that limit.

Measured, the kernels of one step ({device}; of the 40 slowest, which leave out next to nothing):

{measured}

What the prediction missed, and what was learnt from it: [GPU_NOTES.md](GPU_NOTES.md).

## What ours leaves out

- A convolution's bias goes into the normalisation behind it, which has a bias per channel already, or with residual,
  shortcut and the shortcut's bias into one `residual_sum`; a 1 x 1 convolution is a matrix product, which adds its own.
- A shortcut of two inputs is two matrix products, and a sum of three terms instead of two. That writes and reads its
  result y once more. One product of the concatenation would first read and write the inputs, 1.5 to 3 y here.
- The gradient to packed attention is one tensor in the strides of the projection, not a copied stack of three.
- The gradients that meet at the input of a residual block are added in the kernel of its normalisation.
- A joined normalisation reads each band of channels from the one tensor it lies in, 32 bytes at a time; that is a whole
  image of 32 x 32 per tile but where a group of channels lies in both tensors (256 + 128 channels in 32 groups).
- Weights are cast, folded and laid out once, not in every step. So the folding of upsampling into its convolution costs
  nothing here and has no kernel; nor has the interleaving of pixels, which the transposed convolution writes in place.
  Whether cuDNN's transposed convolution of stride 2 comes near its FLOPs is for a GPU to say.

The prediction for `cifar-8` at batch 256 began at 18.6 ms, and went to 16.6 (biases, residuals, weights), 15.9
(attention), 15.0 (gradients) and 14.7 (joined normalisations), all without the issue of instructions: with it, the
last was 16.6. What is left beside convolutions, the largest first:
normalisations, attention, residual sums, the sums of gradients where skip connections leave, padding before
downsampling, biases behind resampling.

## Our kernels, as the assembler has them

For sm_90, the slowest 24 of a step. Resident: programs that share a multiprocessor. Instructions: those of a warp, the
loop's with how often it runs. Issue and bytes: the milliseconds that each would take alone; what issues as long as it
moves cannot reach the bandwidth of a copy.

{assembled}

## Ours, by operator

Measured: of one call, launches aside, with cold caches for our normalisations and attention.

{kernels}
"""


if __name__ == "__main__":
    sys.exit(main())
