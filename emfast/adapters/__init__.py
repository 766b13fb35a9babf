"""Networks of other packages, accelerated in place: the same object, class, parameters and state_dict."""

from collections import Counter
from typing import Any, TypeVar

import torch
from torch import nn

from emfast._check import check
from emfast._memory import keep_freed_memory
from emfast.adapters import diffusers, edm, guided_diffusion
from emfast.nn.swap import Settings, Swapped, original, swap, unswap

ADAPTERS = (diffusers, guided_diffusion, edm)
Model = TypeVar("Model")  # a module, or a pipeline with one


def accelerate(model: Model, *, dtype: torch.dtype | None = None) -> Model:
    """Makes a U-Net faster, in place, with the same results up to rounding.

    Known modules get a faster forward; they keep class name, parameters, state_dict, hooks and training mode.
    Gradients (of first order), autocast, torch.compile, DDP, gradient checkpointing, copy.deepcopy and pickling work as
    before. Modules that are not known are left alone; `report` lists them.

    On a CPU with glibc the process keeps freed memory from then on (see `emfast._memory`): mapping the activations of a
    large batch afresh at every step costs more than computing them.

    Arguments:
        model: The network, a module that contains it, or a pipeline of diffusers, for its `unet`. Known networks are,
            of diffusers, UNet2DModel, and the residual, attention and resampling blocks of any other; of
            guided-diffusion and DPS, UNetModel; of EDM, SongUNet and DhariwalUNet.
        dtype: The precision of convolutions and linear layers (bfloat16, float16, float32). Normalisations, softmax
            and sums stay float32, and so do the parameters and their gradients. By default that of the model, or
            autocast's.

    Returns:
        The model itself. Its output has the dtype of its parameters (autocast's under autocast).

    Raises:
        TypeError: If model is neither a module nor a pipeline with one, or dtype not a floating one.
    """
    network = _network("accelerate", model)
    floating = dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)
    check(floating, "accelerate", "dtype", "to be a floating dtype or None", dtype, error=TypeError)
    restore(network)
    found = [item for adapter in ADAPTERS for item in adapter.swaps(network)]
    for module, mixin, _ in found:
        swap(module, mixin, Settings(dtype))
    whole = not left_alone(network)  # else features keep the dtype that the modules left alone expect
    for module, mixin, place in found:
        swap(module, mixin, Settings(dtype, whole and place == "entry", whole and place == "exit"))
    if found and next(network.parameters()).is_cpu:
        keep_freed_memory()
    return model


def restore(model: Model) -> Model:
    """Undoes `accelerate`, in place: every module computes as its own class does again.

    Arguments:
        model: The network, accelerated or not.

    Returns:
        The model itself.
    """
    for module in _network("restore", model).modules():
        if isinstance(module, Swapped):
            unswap(module)
    return model


def report(model: Any) -> dict[str, dict[str, int]]:
    """Returns how many modules of each class are accelerated (`swapped`) and were left as they are (`left`).

    Arguments:
        model: The network, after `accelerate`.
    """
    network = _network("report", model)
    swapped = Counter(original(module).__name__ for module in network.modules() if isinstance(module, Swapped))
    left = Counter(original(module).__name__ for module in left_alone(network))
    return {"swapped": dict(swapped), "left": dict(left)}


def _network(function: str, model: Any) -> nn.Module:
    """Returns a module itself, and the U-Net of a pipeline."""
    network: Any = model if isinstance(model, nn.Module) else getattr(model, "unet", None)
    expected, fix = "to be a torch.nn.Module, or a pipeline with a unet", "Give the network itself"
    check(isinstance(network, nn.Module), function, "model", expected, type(model), fix, TypeError)
    module: nn.Module = network
    return module


def left_alone(model: nn.Module) -> list[nn.Module]:
    """Returns the modules with parameters of their own that no accelerated module contains."""
    found: list[nn.Module] = []
    covered = {id(module) for adapter in ADAPTERS for module in adapter.covered(model)}

    def visit(module: Any) -> None:
        if id(module) in covered or (isinstance(module, Swapped) and not module.hands_on):
            return
        if next(module.parameters(recurse=False), None) is not None:
            found.append(module)
        for child in module.children():
            visit(child)

    visit(model)
    return found
