"""Networks of other packages, accelerated in place: the same object, class, parameters and state_dict."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from emfast._check import check
from emfast._memory import keep_freed_memory
from emfast.adapters import diffusers, edm, guided_diffusion
from emfast.adapters.comparison import difference
from emfast.adapters.parts import original_class, replaced_method
from emfast.adapters.swap import STATE, Settings, Swapped, is_known, obstacle, swap, unswap


class Adapter(Protocol):
    """What a family of networks has, as a module.

    NETWORKS holds the names of its networks, `swaps` yields modules to swap, by what, and their place ("entry", "exit"
    or ""), `covered` those that are left alone on purpose.
    """

    __name__: str

    @property
    def NETWORKS(self) -> tuple[str, ...]:
        """The names of its networks."""

    def swaps(self, model: nn.Module) -> Iterator[tuple[nn.Module, type[Swapped], str]]:
        """Yields the modules of a network to swap."""

    def covered(self, model: nn.Module) -> Iterator[nn.Module]:
        """Yields the modules that are left alone."""


ADAPTERS: tuple[Adapter, ...] = (diffusers, guided_diffusion, edm)
Model = TypeVar("Model")  # a module, or a pipeline with one
_differences: Any = WeakKeyDictionary()  # a module that was compared -> how it differs


def accelerate(model: Model, *, dtype: torch.dtype | None = None, compare: bool = True) -> Model:
    """Makes a U-Net faster, in place, with the same results up to rounding.

    Known modules get a faster forward; they keep class name, parameters, state_dict, hooks and training mode.
    Gradients (of first order), autocast, torch.compile, DDP, gradient checkpointing, copy.deepcopy and pickling work as
    before. Modules that are not known are left alone; `report` lists them, with the reason. What is changed later (a
    part replaced, an attribute set, a hook added, a method patched, weights written in whatever way) is followed by the
    next call; by that of a compiled network once it is compiled anew, after torch.compiler.reset(), but for weights.
    torch.func.functional_call works, the transforms of torch.func (grad, vjp, vmap) do not: `restore` first.

    On a CPU with glibc the process keeps freed memory from then on (see `emfast._memory`): mapping the activations of a
    large batch afresh at every step costs more than computing them.

    Arguments:
        model: The network, a module that contains it, or a pipeline of diffusers, for its `unet`. Known networks are,
            of diffusers, UNet2DModel, and the residual, attention and resampling blocks of any other; of
            guided-diffusion and DPS, UNetModel; of EDM, SongUNet and DhariwalUNet.
        dtype: The precision of convolutions and linear layers (bfloat16, float16, float32). Normalisations, softmax
            and sums stay float32, and so do the parameters and their gradients. By default that of the model, or
            autocast's.
        compare: Whether every kind of module is computed both ways once, on a small example, and left alone where they
            differ: changed copies of these networks go by the same names. About as much work as one image.

    Returns:
        The model itself. Its output has the dtype of its parameters (autocast's under autocast).

    Raises:
        TypeError: If model is neither a module nor a pipeline with one, or dtype not a floating one.
    """
    network = _network("accelerate", model)
    floating = dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)
    check(floating, "accelerate", "dtype", "to be a floating dtype or None", dtype, error=TypeError)
    restore(network)
    found = sorted((item for adapter in ADAPTERS for item in adapter.swaps(network)), key=lambda item: item[1].hands_on)
    examples: dict[str, str] = {}
    for module, mixin, _ in found:
        if obstacle(module, mixin) or replaced_method(module):
            continue
        _differences[module] = _difference(module, mixin, examples) if compare else ""
        if not _differences[module]:
            swap(module, mixin, Settings())
    whole = not left_alone(network)  # else features keep the dtype that the modules left alone expect
    found = [item for item in found if isinstance(item[0], Swapped)]
    for module, mixin, place in found:
        swap(module, mixin, Settings(dtype, whole and place == "entry", whole and place == "exit"))
    if found and next(network.parameters()).is_cpu:
        keep_freed_memory()
    return model


def _difference(module: nn.Module, mixin: type[Swapped], examples: dict[str, str]) -> str:
    """Returns how a module differs from what it is to be swapped by; equal modules are compared once."""
    simple = {name: value for name, value in vars(module).items() if isinstance(value, str | int | float | tuple)}
    key = f"{mixin} {original_class(module)} {simple} {module!r}"
    if any(p.is_meta for p in module.parameters()):
        return ""
    if key not in examples:
        examples[key] = difference(module, mixin)
    return examples[key]


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


def report(model: Any) -> dict[str, dict[str, Any]]:
    """Returns what is accelerated, as the model is now, and what is not.

    Arguments:
        model: The network, after `accelerate`.

    Returns:
        `swapped` and `left`: the number of modules of each class that are accelerated and that were left as they are.
        `reasons`: for modules of a known class that compute as their own class does, by name, why. Of a network with
            no module of a known class, under the name "".
    """
    network = _network("report", model)
    swapped = Counter(original_class(module).__name__ for module in network.modules() if _is_fast(module))
    left = Counter(original_class(module).__name__ for module in left_alone(network))
    reasons = dict(_named_reasons(network))
    if not swapped and not reasons:
        known = ", ".join(name for adapter in ADAPTERS for name in adapter.NETWORKS)
        reasons[""] = f"{type(network).__name__} has no module of a class that is known, as {known} have"
    return {"swapped": dict(swapped), "left": dict(left), "reasons": reasons}


def _is_fast(module: nn.Module) -> bool:
    return isinstance(module, Swapped) and bool(is_known(module))


def _named_reasons(model: nn.Module) -> Iterator[tuple[str, str]]:
    names = {module: name for name, module in model.named_modules()}
    inside = {part for module in names if _is_fast(module) and not module.hands_on for part in module.modules()}
    for module, mixin, _ in (item for adapter in ADAPTERS for item in adapter.swaps(model)):
        if _is_fast(module) or module in inside or next(module.parameters(), None) is None:
            continue
        if isinstance(module, Swapped):
            reason = module.__dict__[STATE].obstacle or "hooks are registered for all modules"
        else:
            replaced = replaced_method(module)
            reason = f"{replaced} has been replaced" if replaced else obstacle(module, mixin)
        yield names[module], reason or _differences.get(module) or "it was not there when accelerate() was called"


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
        if id(module) in covered or (_is_fast(module) and not module.hands_on):
            return
        if next(module.parameters(recurse=False), None) is not None:
            found.append(module)
        for child in module.children():
            visit(child)

    visit(model)
    return found
