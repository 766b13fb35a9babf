"""Where a network computes, and in what precision."""

from __future__ import annotations

import os

import torch

from emfast._check import check, message
from emfast.adapters import accelerate
from emfast.diffusion import Denoiser


def resolve_device(name: str) -> torch.device:
    """Returns the device of a config: "auto" is CUDA if there is one.

    Raises:
        ValueError: If the name is not a device's, or there is no such device.
    """
    if name == "auto":
        # Of a process that sees one GPU only (srun --gpus-per-task 1) that is number 0, whatever its rank.
        number = os.environ.get("LOCAL_RANK", 0) if torch.cuda.device_count() > 1 else 0
        name = f"cuda:{number}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        missing = device.type == "cuda" and not torch.cuda.is_available()
        if not missing:
            torch.zeros(1, device=device).cpu()  # is there one of that number, and does it hold values?
    except Exception:  # every kind of device has its own way to say that it is not there
        raise ValueError(message("device", "device", 'to be "auto", "cpu", "cuda", ... and to exist', name)) from None
    check(not missing, "device", "device", "to exist", f"{name}, but no CUDA device is visible")
    return device


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """Returns the compute dtype of a config: "auto" is bfloat16 where the hardware multiplies matrices in it.

    Arguments:
        name: "auto", "float32" or "bfloat16".
        device: Where it is computed.
    """
    if name == "auto":
        if device.type == "cuda":
            good = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            good = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
        name = "bfloat16" if good else "float32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def prepare(denoiser: Denoiser, device: torch.device, precision: str = "auto", *, fast: bool | None = None) -> Denoiser:
    """Returns the denoiser on a device, its network computing in a precision; the values of the weights stay.

    Arguments:
        denoiser: The denoiser.
        device: Where to put it.
        precision: "auto", "float32" or "bfloat16".
        fast: Accelerates the modules that emfast knows; None: where that was measured to be faster, on CPUs and, in
            bfloat16, on GPUs.
    """
    dtype = resolve_precision(precision, device)
    measured = device.type == "cpu" or (device.type == "cuda" and dtype == torch.bfloat16)
    if measured if fast is None else fast:
        accelerate(denoiser.network, dtype=dtype)
    else:
        denoiser.dtype = dtype
        if device.type == "cuda" and dtype == torch.bfloat16:  # tensor cores read channels innermost
            denoiser.network.to(memory_format=torch.channels_last)
    return denoiser.to(device)
