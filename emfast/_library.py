"""Registration of operators with the PyTorch dispatcher.

Every op has a reference under CompositeExplicitAutograd, which serves every device; C++ serves the CPU key and Triton
the CUDA key. Which of them runs stands in the table of `emfast.dispatch`.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from emfast._check import check, message
from emfast.dispatch import TABLE, Backend, Way, run

OPS: dict[str, bool] = {}  # the names of all ops, and whether they have gradients


def register(
    name: str,
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    triton: str | None = None,
    cpp: Callable[..., Any] | None = None,
    unsupported: Callable[..., str | None] | None = None,
    slower: Callable[..., bool] | None = None,
) -> Callable[..., Any]:
    """Defines the op emfast::<name> and returns its overload, which is what the public function calls.

    Arguments:
        name: The op's name.
        schema: Arguments and results in PyTorch's schema language: functional, with a fixed number of results.
        reference: The specification in plain torch.
        fake: Returns uninitialised results with the shapes, dtypes and strides of the real ones.
        backward: The autograd formula `(ctx, *grads) -> grads`; without one, differentiating the op is an error.
        setup_context: Saves what backward needs, `(ctx, inputs, output)`.
        triton: Stem of the file in kernels/ whose function <name>, with this schema, launches the kernel.
        cpp: A function of this schema that calls `extension()`.
        unsupported: Returns why the kernels cannot take the given arguments, or None if they can.
        slower: Returns whether the reference was measured to be faster than the kernels with the given arguments.
    """
    kernels: dict[Backend, Callable[..., Any]] = {}
    if cpp is not None:
        kernels["cpp"] = cpp
    if triton is not None:
        kernels["triton"] = lambda *args: triton_launcher(triton, name)(*args)
    options: dict[str, Any] = {
        name: value for name, value in (("unsupported", unsupported), ("slower", slower)) if value
    }
    ways = [Way(kind, kernel, (kind,), partial(_missing, kind), **options) for kind, kernel in kernels.items()]
    TABLE[name] = *ways, Way("reference", reference, ("reference",))
    OPS[name] = backward is not None
    qualname = f"emfast::{name}"
    torch.library.define(qualname, schema)
    torch.library.impl(qualname, "CompositeExplicitAutograd", reference)
    torch.library.impl(qualname, "CPU", partial(run, name, "cpu"))
    torch.library.impl(qualname, "CUDA", partial(run, name, "cuda"))
    torch.library.register_fake(qualname, partial(_fake_on_one_device, name, fake))
    overload = getattr(torch.ops.emfast, name).default
    formula = backward or partial(_no_formula, name)
    torch.library.impl(qualname, "Autograd", _differentiable(name, overload, formula, setup_context))
    return overload


def _fake_on_one_device(name: str, fake: Callable[..., Any], *args: Any) -> Any:
    """Returns uninitialised results; for a real tensor beside one without values they would pass for values."""
    devices = {str(leaf.device) for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)}
    found = " and ".join(sorted(devices))
    check(len(devices) < 2, name, "all tensors", "to be on one device", found, "Move them with .to()", RuntimeError)
    return fake(*args)


def _differentiable(name: str, op: Any, formula: Callable[..., Any], setup_context: Callable[..., None] | None) -> Any:
    """Returns the op's autograd kernel. torch.library.register_autograd does the same and costs 30 us more a call."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = op(*args)
            if setup_context is not None:
                setup_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return formula(ctx, *grads)

    def kernel(*args: Any) -> Any:
        if forward_ad._current_level >= 0:
            _refuse_tangents(name, args)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return Function.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return kernel


def _refuse_tangents(name: str, args: Sequence[Any]) -> None:
    """Refuses a derivative in forward mode, which would be 0 without a word."""
    tensors = [arg for arg in tree_leaves(args) if isinstance(arg, torch.Tensor)]
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        requirement, fix = "in reverse mode", "Call torch.autograd.grad or backward, or use plain torch modules"
        raise NotImplementedError(message(name, "a derivative", requirement, "one in forward mode", fix))


def first_order(name: str, backward: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a backward formula, `(ctx, saved, *grads)`, as a backward method whose own derivatives are refused.

    torch's `once_differentiable` refuses `.backward()` alone: to autograd.grad its results depend on nothing, and with
    allow_unused, as in torch.autograd.functional, a derivative of second order is 0 without a word.

    Arguments:
        name: What is differentiated, for the error.
        backward: The formula; `saved` are the saved tensors.
    """

    def checked(ctx: Any, *grads: Any) -> Any:
        saved = ctx.saved_tensors  # once: checkpointing recomputes them
        with torch.no_grad():
            found = backward(ctx, saved, *grads)
        sources = [t for t in (*grads, *saved) if isinstance(t, torch.Tensor) and t.requires_grad]
        if not (torch.is_grad_enabled() and sources):
            return found
        places = [place for place, tensor in enumerate(found) if tensor is not None]
        refusing = _Refusing.apply(name, len(places), *(found[place] for place in places), *sources)
        whole = dict(zip(places, refusing, strict=True))
        return tuple(whole.get(place) for place in range(len(found)))

    return checked


class _Refusing(torch.autograd.Function):
    """Tensors as they are, which depend on others; to differentiate them is an error."""

    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.name = name
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> None:
        _no_formula(ctx.name, ctx)


def wanted_gradients(ctx: Any) -> list[bool]:
    """Returns which gradients a backward pass wants: autograd.grad(y, x) wants none of the weights'.

    Arguments:
        ctx: That of an autograd function, with `slots`, the places of the tensors among its arguments.
    """
    needs = list(ctx.needs_input_grad)
    for slot, (node, _) in zip(ctx.slots, ctx.next_functions, strict=True):
        needs[slot] = needs[slot] and node is not None and _is_executed(node)
    return needs


def _is_executed(node: Any) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # what autograd.grad was asked for is never asked about
        return True


def _no_formula(name: str, ctx: Any, *grads: Any) -> None:
    requirement, fix = "of first order", "Call backward without create_graph=True, or use plain torch modules"
    raise NotImplementedError(message(name, "a derivative", requirement, "one of second order", fix))


def _missing(backend: Backend, device: str) -> str | None:
    """Returns why a backend has no kernels for a type of device, or None if it has."""
    if backend == "cpp":
        return extension_error() if device == "cpu" else f"C++ kernels do not run on {device}"
    interpreted = device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    return triton_error() if device == "cuda" or interpreted else f"Triton kernels do not run on {device}"


@cache
def extension() -> ModuleType:
    """Returns the compiled CPU backend emfast._C (torch is imported first, so that both share one libgomp)."""
    return importlib.import_module("emfast._C")


def run_cpp(function: str, *arguments: Any) -> None:
    """Calls a function of emfast._C, which takes addresses, with the tensors that these belong to.

    No op sees an address: the memory of a tensor that was made for the call would be free before the kernel reads it.
    Here the arguments hold every tensor until the call returns.

    Arguments:
        function: Its name.
        arguments: What it takes, but with tensors for addresses and None for 0; these stand in lists, and only there.
    """
    getattr(extension(), function)(*[_addressed(part) if type(part) is list else part for part in arguments])


def _addressed(row: list[Any]) -> list[Any]:
    return [
        part.data_ptr() if isinstance(part, torch.Tensor) else _addressed(part) if type(part) is list else part or 0
        for part in row
    ]


@cache
def extension_error() -> str | None:
    """Returns why emfast._C cannot be used, or None if it can."""
    if importlib.util.find_spec("emfast._C") is None:
        return "emfast._C is not compiled: there was no working C++ compiler when emfast was installed"
    try:
        extension()
    except ImportError as error:
        return f"emfast._C does not load: {error}"
    return None


@cache
def triton_error() -> str | None:
    """Returns why Triton cannot be used, or None if it can; it is not imported to find out."""
    return None if importlib.util.find_spec("triton") else "triton is not installed"


@cache
def triton_launcher(stem: str, name: str) -> Callable[..., Any]:
    """Returns the launch function of a Triton kernel, which is imported at the first call.

    Arguments:
        stem: The file in kernels/, without its suffix.
        name: The function in it.
    """
    importlib.import_module("emfast.kernels._archive").settled()
    launcher: Callable[..., Any] = getattr(importlib.import_module(f"emfast.kernels.{stem}"), name)
    return launcher
