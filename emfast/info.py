"""What runs here: versions, devices, the compiled extension, and which backend serves each op, and why."""

import importlib.metadata
import platform
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import emfast
import emfast.ops
from emfast import adapters
from emfast._library import OPS, extension, extension_error
from emfast.dispatch import BACKENDS, TABLE, Choice, recorded
from emfast.samplers.frozen import frozen

PACKAGES = ("torch", "triton", "diffusers", "accelerate", "safetensors", "numpy")


def info() -> dict[str, Any]:
    """Returns versions, devices, the compiled extension and the backends of every op, as plain data.

    Returns:
        A dict with the keys `emfast`, `python`, `packages` (name to version, None if not installed), `cpu`, `threads`,
        `gpus` (names), `extension` (its instruction set, or why it is missing), `accelerates` (the networks that
        `accelerate` knows) and `ops`: for each op and type of device here, the backend that runs it (`runs`) and why
        the others do not (`not`).
    """
    error = extension_error()
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return {
        "emfast": emfast.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "extension": error or f"compiled, runs {extension().instruction_set()}",
        "accelerates": {adapter.__name__.split(".")[-1]: ", ".join(adapter.NETWORKS) for adapter in adapters.ADAPTERS},
        "ops": {name: {device: _choice(name, device) for device in devices} for name in sorted(OPS)},
    }


def ways(network: nn.Module, shape: tuple[int, int, int]) -> list[dict[str, Any]]:
    """Returns, layer by layer, which way a network takes here as a sampler runs it, found by computing one image.

    Arguments:
        network: A network of images and times, accelerated.
        shape: (C, H, W) of its images.

    Returns:
        Dicts with the keys `layer`, `what` is computed, the `way`, and why `not` each that is preferred to it.
    """
    like = next(network.parameters())
    x = torch.zeros(1, *shape, dtype=like.dtype, device=like.device, requires_grad=True)
    training = network.training
    try:
        with recorded() as choices, frozen(network.eval()), torch.enable_grad():
            network(x, torch.zeros(1, device=like.device))
    finally:
        network.train(training)
    return list(_layers(network, choices))


def _layers(network: nn.Module, choices: list[Choice]) -> Iterator[dict[str, Any]]:
    """Yields choices by the names of the layers whose weights they were made for; attention's is its projection's."""
    names = {id(p): name.rpartition(".")[0] for name, p in network.named_parameters()}
    layer = ""
    for choice in choices:
        tensors = tree_leaves([vars(x)["_parameters"] if isinstance(x, nn.Module) else x for x in choice.arguments])
        layer = next((names[id(x)] for x in tensors if isinstance(x, Tensor) and id(x) in names), layer)
        if choice.subject not in OPS:
            yield {"layer": layer, "what": choice.subject, "way": choice.way, "not": choice.reasons}


def _choice(op: str, device: str) -> dict[str, Any]:
    missing = {way.name: way.missing(device) for way in TABLE[op]}
    reasons = {name: missing.get(name, f"there is no {name} kernel") for name in BACKENDS}
    runs = next(name for name, reason in missing.items() if not reason)
    return {"runs": runs, "not": {name: reason for name, reason in reasons.items() if reason}}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
