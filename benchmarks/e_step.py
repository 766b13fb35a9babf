"""Times one DPS step and one training step of the U-Nets in use: today's alternatives, and emfast.

Whole E-steps with the samplers of several libraries: e_step_samplers.py.

python benchmarks/e_step.py [NETWORK ...] [--device cpu] [--batch B ...] [--work dps train] [--profile] [--save]

All variants run the same step and differ in the network only; they are timed in turn, so that a busy machine slows them
all alike. Beside them stands the floor: the network's convolutions alone at the speed that its largest one reaches.
On a GPU torch.compile is asked for its best (max-autotune, with CUDA graphs), or for that without the many minutes in
which it measures matrix products ("quickly": reduce-overhead, with CUDA graphs); emfast's DPS step is a CUDA graph too,
and so are steps whose names begin with "graph". In a DPS step the weights of all but the official code
are frozen: torch.compile would compute their gradients.
--profile prints each variant's share of time by kind of op; --save appends one JSON line per measurement to
e_step.jsonl in benchmarks/results, and one per profile to profiles.jsonl, and refuses a tree that differs from its
commit. Tests of accuracy: tests/adapters.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from measure import Measurement, environment, is_dirty, measure, median, once, peak_memory, save
from profiles import ROWS, Profile, profiled, shares
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import emfast
from emfast._memory import keep_freed_memory
from emfast.graph import Graphed
from emfast.nn.prepared import unchanged

COMMON = {"sample_size": 32, "norm_eps": 1e-6, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1}
CIFAR = COMMON | {
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
SMALL = COMMON | {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "cifar-8": (CIFAR | {"attention_head_dim": 8}, 4),
    "cifar-256": (CIFAR | {"attention_head_dim": None}, 4),
    "small-64": (SMALL, 64),
    "small-256": (SMALL, 256),
}
BF16 = torch.bfloat16
LAST: dict[str, Any] = {"dtype": BF16, "memory_format": torch.channels_last}
# name: what is done to the network, the dtype it is called in, the autocast dtype, whether freed memory is kept
VARIANTS: dict[str, tuple[Callable[[nn.Module], nn.Module], torch.dtype, torch.dtype | None, bool]] = {
    "fp32": (lambda m: m, torch.float32, None, False),
    "fp32 channels_last": (lambda m: m.to(memory_format=torch.channels_last), torch.float32, None, False),
    "bf16 autocast": (lambda m: m, torch.float32, BF16, False),
    "bf16 channels_last": (lambda m: m.to(**LAST), BF16, None, False),
    "graph bf16 channels_last": (lambda m: m.to(**LAST), BF16, None, False),
    "compile fp32": (lambda m: compiled(m), torch.float32, None, False),
    "compile bf16 channels_last": (lambda m: compiled(m.to(**LAST)), BF16, None, False),
    "compile quickly bf16 channels_last": (lambda m: compiled(m.to(**LAST), "reduce-overhead"), BF16, None, False),
    "emfast fp32": (emfast.accelerate, torch.float32, None, True),
    "emfast bf16": (partial(emfast.accelerate, dtype=BF16), torch.float32, None, True),
    "graph emfast bf16": (partial(emfast.accelerate, dtype=BF16), torch.float32, None, True),
}
QUICK = [name for name in VARIANTS if not name.startswith(("compile", "graph"))]


def main() -> int:
    """Runs what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)}; all without any")
    parser.add_argument("--work", nargs="+", default=["dps", "train"], choices=["dps", "train"])
    parser.add_argument("--only", nargs="+", default=QUICK, choices=VARIANTS, metavar="NAME", help=", ".join(VARIANTS))
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--batch", nargs="+", type=int, help="other sizes of batch than the network's own")
    parser.add_argument("--training-batch", type=int, help="that of the training step, where it is to be another")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing, per variant")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", action="store_true", help="print the share of time by kind of op")
    parser.add_argument("--search", action="store_true", help="have cuDNN try its kernels, and take the fastest")
    parser.add_argument("--save", action="store_true", help="append to benchmarks/results/e_step.jsonl")
    options = parser.parse_args()
    unknown = sorted(set(options.networks) - set(NETWORKS))
    if unknown:
        parser.error(f"no such network: {', '.join(unknown)}; there are {', '.join(NETWORKS)}")
    if options.save and is_dirty():
        parser.error("--save: the tree differs from its commit; commit first")
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = options.search
    for network in options.networks or NETWORKS:
        for work in options.work:
            other = [options.training_batch] if work == "train" and options.training_batch else None
            for batch in other or options.batch or [NETWORKS[network][1]]:
                with ExitStack() as block:
                    measurements = compare(network, work, batch, options, block)
                if options.save:
                    save(measurements, "e_step")
    return 0


def compare(network: str, work: str, batch: int, options: argparse.Namespace, block: ExitStack) -> list[Measurement]:
    """Measures and prints one network at one kind of work."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    device = options.device
    model = UNet2DModel(**NETWORKS[network][0]).to(device)
    x = torch.randn(batch, model.config.in_channels, 32, 32, device=device)
    steps, memory = {}, {}
    for name in options.only:
        try:
            steps[name] = step_of(work, copy.deepcopy(model), x, name, block)
            memory[name] = peak_of(steps[name], device)
        except Exception as error:  # out of memory, or a compiler that fails: the others go on
            steps.pop(name, None)
            print(f"  {name} fails: {type(error).__name__}: {str(error).strip().splitlines()[0]}", file=sys.stderr)
    flops = convolution_flops(step_of(work, copy.deepcopy(model), x[:1], "fp32")) * batch
    ceilings = {f"floor {name}": ceiling(dtype, device) for name, dtype in (("fp32", torch.float32), ("bf16", BF16))}
    kept = {name: VARIANTS[name][3] for name in steps}
    times = {name: median(t) for name, t in measure_steps(steps, kept, options.seconds, device).items()}
    print(f"{network} | batch {batch} | {work} | {flops / 1e9:.1f} GFLOP of convolutions")
    base, where, results, profiles = next(iter(times.values()))[1], environment(device), [], []
    for name, speed in ceilings.items():
        print(f"  {name:27} {flops / speed * 1e3:9.1f} ms, {speed / 1e9:.0f} GFLOP/s")
    for name, (p20, ms, p80) in times.items():
        fraction = flops / ceilings["floor bf16" if "bf16" in name else "floor fp32"] * 1e3 / ms
        mb, kinds = memory[name], None
        if options.profile:
            rows = profiled(steps[name], device)
            kinds = shares(rows)
            profiles.append(Profile(f"{network} {work}", name, batch, sum(row[2] for row in rows), rows[:ROWS], where))
        row = (f"{network} {work}", name, "step", f"batch {batch}", name, "", ms, p20, p80, mb, fraction, where)
        results.append(Measurement(*row, shares=kinds))
        note = "" if mb is None else f", {mb / batch:.2f} MB an image"
        print(
            f"  {name:27} {ms:9.2f} ms ({p20:.2f} to {p80:.2f}), {base / ms:5.2f}x, {fraction:.0%} of its floor{note}"
        )
        if kinds:
            print(f"  {'':27} {', '.join(f'{kind} {share:.0%}' for kind, share in kinds.items())}")
    if options.save:
        save(profiles, "profiles")
    return results


def compiled(model: nn.Module, mode: str = "max-autotune") -> Any:
    """Returns the network as torch.compile makes it fastest, on a GPU in one of its modes that use CUDA graphs."""
    cuda = next(model.parameters()).is_cuda
    return torch.compile(model, mode=mode) if cuda else torch.compile(model)


def step_of(work: str, model: nn.Module, x: Tensor, name: str, block: ExitStack | None = None) -> Callable[[], Any]:
    """Returns one step of a variant, without arguments; in the block emfast's weights stay frozen, as in a sampler."""
    change, dtype, autocast, _ = VARIANTS[name]
    frozen = work == "dps" and name != "fp32"
    network = change(model.train(work == "train").requires_grad_(not frozen))
    if frozen and "emfast" in name and block is not None:
        block.enter_context(unchanged(network.parameters()))
    t = torch.full((len(x),), 500, device=x.device)

    def predict(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, autocast or BF16, enabled=autocast is not None):
            return network(x.to(dtype), t).sample.to(x.dtype)

    step = train(predict, model, x) if work == "train" else dps(predict, x)
    graph = name.startswith("graph") or (work == "dps" and name.startswith("emfast"))
    return partial(Graphed(lambda x: (step(x),)), x) if graph else partial(step, x)


def peak_of(step: Callable[[], Any], device: torch.device) -> float | None:
    """Returns the MB that a step adds at its peak; of a graph, those of the plain call before it."""
    function = getattr(step, "func", None)
    if isinstance(function, Graphed):
        step = partial(function.function, *step.args)  # type: ignore[attr-defined]
    step()  # compiles
    return peak_memory(step, device)


def measure_steps(
    steps: dict[str, Callable[[], Any]],
    kept: dict[str, bool],
    seconds: float,
    device: torch.device,
    *,
    least: int = 7,
    dropped: int = 2,
) -> dict[str, list[float]]:
    """Returns the times, in ms, of steps run in turn; an untimed one comes first where malloc's settings change.

    Arguments:
        steps: The functions, by name.
        kept: Whether freed memory is kept while a step runs.
        seconds: The time for each, at least.
        device: Where they run.
        least: Rounds, at least.
        dropped: The first rounds, which compile and prepare, are not returned.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    now, end = None, time.perf_counter() + seconds * len(steps)
    while min(map(len, times.values())) < least or time.perf_counter() < end:
        for name, step in steps.items():
            if now != kept[name]:
                now = kept[name]
                keep_freed_memory(now)
                step()
            times[name].append(once(step, device))
    keep_freed_memory(False)
    return {name: values[dropped:] for name, values in times.items()}


def dps(predict: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns a step as the published code has it: x0-hat, residual, its norm, the gradient to x_t, the update."""
    mask = (torch.rand(x.shape, device=x.device) > 0.6).to(x.dtype)
    y = mask * x
    alpha, sigma = 0.6, 0.8

    def step(x: Tensor) -> Tensor:
        x_t = x.detach().requires_grad_()  # the network gets a view: the FLOP counter takes no leaves
        x_0 = ((x_t - sigma * predict(x_t.view_as(x_t))) / alpha).clamp(-1, 1)
        norm = torch.linalg.norm(y - mask * x_0)
        (gradient,) = torch.autograd.grad(norm, x_t)
        return (0.5 * x_t + 0.5 * x_0 + 0.1 * torch.randn_like(x_t) - gradient).detach()

    return step


def train(predict: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns a training step: forward, full backward, AdamW, moving average."""
    parameters = list(model.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True, capturable=x.is_cuda)

    def step(x: Tensor) -> Tensor:
        noise = torch.randn_like(x)
        loss = F.mse_loss(predict(x + noise), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1e-3)
        return loss.detach()

    return step


def convolution_flops(step: Callable[[], Any]) -> int:
    """Returns the floating-point operations of a native step's convolutions."""
    with FlopCounterMode(display=False) as counter:
        step()
    return sum(count for op, count in counter.get_flop_counts()["Global"].items() if "conv" in str(op))


@torch.no_grad()
def ceiling(dtype: torch.dtype, device: torch.device) -> float:
    """Returns the FLOP/s of a large convolution of these networks, with weights in the kernel's own order."""
    batch = 256 if device.type == "cuda" else 16
    x = torch.randn(batch, 256, 16, 16, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
    layer = nn.Conv2d(256, 256, 3, padding=1, dtype=dtype, device=device).to(memory_format=torch.channels_last)
    times = measure({"conv": lambda: layer(x)}, device, 0.5)["conv"]
    return float(2 * x.numel() * 256 * 9 / median(times)[0] * 1e3)


if __name__ == "__main__":
    sys.exit(main())
