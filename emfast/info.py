"""What runs here: versions, devices, the compiled extension, and which backend serves each op, and why."""

import importlib.metadata
import platform
from typing import Any

import torch

import emfast
import emfast.ops
from emfast import adapters
from emfast._library import OPS, extension, extension_error
from emfast.dispatch import BACKENDS, TABLE

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
