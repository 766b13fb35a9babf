"""Registration of operators with the PyTorch dispatcher, the only backend switch of emfast.

Every op has a reference under CompositeExplicitAutograd, which serves every device; C++ serves the CPU key and Triton
the CUDA key. `backend(...)` forces one of the three, and a forced backend never falls back.
"""

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import Any, Literal

import torch

from emfast._check import check, message

Backend = Literal["reference", "cpp", "triton"]
BACKENDS: tuple[Backend, ...] = ("reference", "cpp", "triton")
_forced: list[Backend] = []  # of all threads: on a GPU autograd runs a backward pass in one of its own


@dataclass(frozen=True)
class Op:
    """What is registered under one name: a function per backend, and when the kernels do not apply."""

    name: str
    functions: dict[Backend, Callable[..., Any]]
    unsupported: Callable[..., str | None]
    slower: Callable[..., bool]
    differentiable: bool

    def why_not(self, backend: Backend, device: str) -> str | None:
        """Returns why a backend cannot run this op on a type of device ("cpu", "cuda"), or None if it can."""
        if backend == "reference":
            return None
        if backend not in self.functions:
            return f"there is no {backend} kernel"
        if backend == "cpp":
            return extension_error() if device == "cpu" else f"C++ kernels do not run on {device}"
        interpreted = device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
        return triton_error() if device == "cuda" or interpreted else f"Triton kernels do not run on {device}"

    def run(self, default: Backend, device: str, *args: Any) -> Any:
        """Runs the op on the forced backend; else on the default one if it can and is faster, else on the reference."""
        forced = _forced[-1] if _forced else None
        chosen = forced or ("reference" if self.slower(*args) else default)
        if chosen != "reference":
            reason = self.why_not(chosen, device) or self.unsupported(*args)
            if reason and forced:
                requirement = f"to run on the forced backend {forced!r}"
                fix = "Leave the block that forces it, or force 'reference'"
                raise NotImplementedError(message(self.name, "the op", requirement, reason, fix))
            chosen = "reference" if reason else chosen
        return self.functions[chosen](*args)


OPS: dict[str, Op] = {}


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
    functions: dict[Backend, Callable[..., Any]] = {"reference": reference}
    if cpp is not None:
        functions["cpp"] = cpp
    if triton is not None:
        functions["triton"] = lambda *args: triton_launcher(triton, name)(*args)
    op = OPS[name] = Op(
        name, functions, unsupported or (lambda *args: None), slower or (lambda *args: False), backward is not None
    )
    qualname = f"emfast::{name}"
    torch.library.define(qualname, schema)
    torch.library.impl(qualname, "CompositeExplicitAutograd", reference)
    torch.library.impl(qualname, "CPU", partial(op.run, "cpp", "cpu"))
    torch.library.impl(qualname, "CUDA", partial(op.run, "triton", "cuda"))
    torch.library.register_fake(qualname, fake)
    overload = getattr(torch.ops.emfast, name).default
    formula = backward or partial(_no_formula, name)
    torch.library.impl(qualname, "Autograd", _differentiable(overload, formula, setup_context))
    return overload


def _differentiable(op: Any, formula: Callable[..., Any], setup_context: Callable[..., None] | None) -> Any:
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
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return Function.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return kernel


def wanted(ctx: Any) -> list[bool]:
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


@contextlib.contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Forces every op called in the block onto one backend; what cannot run there is an error, never a fallback.

    It holds for all threads, since autograd runs the backward passes of a GPU in one of its own.

    Arguments:
        name: "reference" (plain torch, every device), "cpp" (CPU) or "triton" (CUDA; CPU under TRITON_INTERPRET=1).
    """
    check(name in BACKENDS, "backend", "name", f"to be one of {', '.join(BACKENDS)}", name)
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def is_forced() -> bool:
    """Returns whether a backend is forced: then a public function may not call native torch where that is faster."""
    return len(_forced) > 0


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
    """Returns the launch function of a Triton kernel, which is imported at the first call."""
    importlib.import_module("emfast.kernels._cache").settle(os.environ.get("TRITON_CACHE_DIR", ""))
    launcher: Callable[..., Any] = getattr(importlib.import_module(f"emfast.kernels.{stem}"), name)
    return launcher
