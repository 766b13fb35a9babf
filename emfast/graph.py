"""CUDA graphs: a function of tensors is captured once per shape and replayed; on a CPU it is a plain call.

A sampler's step launches a thousand small kernels; replayed as one graph they cost one launch.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

Tensors = tuple[Tensor, ...]
# So many calls are made before a capture: they compile kernels, prepare weights and allocate workspaces, which a
# capture may not do.
WARM_UP = 3
# So many graphs are kept in a block. Each holds the memory of a step; where something that a graph depends on is made
# anew for every batch, no graph is ever of use again.
KEPT = 8
_current: ContextVar[Graphs | None] = ContextVar("emfast_graphs", default=None)


class Graphed:
    """A function of tensors that returns tensors, replayed from a CUDA graph where its arguments are on a GPU.

    The function has static shapes, never waits for the device, and reads what changes between calls from its arguments
    alone; what it closes over (weights, hyper-parameters) is captured as it is. An argument that is the same tensor as
    at the call before is not copied again. The returned tensors are overwritten by the next call.

    Arguments:
        function: The function.
        state: Tensors that it changes in place. They, and the device's random numbers, are as before after a capture,
            which calls the function a few times.
    """

    def __init__(self, function: Callable[..., Tensors], state: Iterable[Tensor] = ()) -> None:
        self.function, self.state = function, tuple(state)
        self.captures: dict[Hashable, _Capture | None] = {}

    def __call__(self, *tensors: Tensor) -> Tensors:
        """Returns function(*tensors)."""
        if not tensors[0].is_cuda:
            return self.function(*tensors)
        key = tuple((t.shape, t.dtype, t.device) for t in tensors)
        if key not in self.captures:
            with self._unchanged(tensors[0].device):
                self.captures[key] = self._capture(tensors)
        capture = self.captures[key]
        return self.function(*tensors) if capture is None else capture(tensors)

    @contextmanager
    def _unchanged(self, device: torch.device) -> Iterator[None]:
        """Puts back at the end what the calls in the block change."""
        before, numbers = [tensor.clone() for tensor in self.state], torch.cuda.get_rng_state(device)
        yield
        with torch.no_grad():
            for tensor, value in zip(self.state, before, strict=True):
                tensor.copy_(value)
        torch.cuda.set_rng_state(numbers, device)

    def _capture(self, tensors: Tensors) -> _Capture | None:
        """Captures the function; None, with a warning, if it does what a graph cannot hold."""
        inputs = [tensor.clone() for tensor in tensors]  # dense: an expanded tensor cannot be written to
        device = tensors[0].device
        current, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        with torch.cuda.device(device), torch.cuda.stream(current):  # a capture that breaks off leaves its own behind
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP - 1):
                    self.function(*inputs)
                reason = self._why_not(inputs)
            current.wait_stream(stream)
            if reason is None:
                torch.cuda.empty_cache()  # the graph has memory of its own
                graph = torch.cuda.CUDAGraph()
                try:  # other threads, such as NCCL's, may do what this one may not
                    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                        output = self.function(*inputs)
                    return _Capture(graph.replay, inputs, output)
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError as error:
                    reason = str(error)
        first = reason.splitlines()[0]
        warnings.warn(f"Graphed: no CUDA graph can hold this step, it runs without one: {first}", stacklevel=2)
        return None

    def _why_not(self, inputs: list[Tensor]) -> str | None:
        """Returns why a capture would fail, found by a call that may not wait for the device.

        torch's allocator does not recover from a capture in which something waits.
        """
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a prototype, says torch
            torch.cuda.set_sync_debug_mode("error")
        try:
            self.function(*inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            return str(error)
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return None


class _Capture:
    """A captured call: the tensors it reads, those it writes, and how to run it again."""

    def __init__(self, replay: Callable[[], Any], inputs: list[Tensor], output: Tensors) -> None:
        self.replay, self.inputs, self.output = replay, inputs, output
        self.seen: list[tuple[Tensor, int] | None] = [None] * len(inputs)

    def __call__(self, tensors: Tensors) -> Tensors:
        for index, (static, tensor) in enumerate(zip(self.inputs, tensors, strict=True)):
            seen = self.seen[index]
            # An output of the graph is the same object with another value after every call, and a tensor of inference
            # mode has no version: whether these have changed cannot be told.
            own = any(tensor is output for output in self.output) or tensor.is_inference()
            if own or seen is None or seen[0] is not tensor or seen[1] != tensor._version:
                static.copy_(tensor)
                self.seen[index] = None if own else (tensor, tensor._version)
        self.replay()
        return self.output


class Graphs:
    """A context, for use as often as wanted, that keeps the graphs captured in it: one capture serves many batches.

    A graph is captured anew where its network has other weights, modules or settings than before; weights that change
    in place are read by the next replay. Graphs used longest ago make place for new ones. Inside another such block,
    they belong to the outer one.
    """

    def __init__(self) -> None:
        self.kept: dict[Hashable, tuple[Hashable, Graphed]] = {}
        self._outer: list[Graphs | None] = []  # what was current where each block was entered: blocks may be nested

    def __enter__(self) -> Graphs:
        self._outer.append(_current.get())
        _current.set(self._outer[-1] or self)
        return self

    def __exit__(self, *error: object) -> None:
        _current.set(self._outer.pop())

    def clear(self) -> None:
        """Frees the graphs, and the memory that each holds."""
        self.kept.clear()


def graphs() -> Graphs:
    """Returns a context in which a sampler that is called batch after batch captures its step once.

    On a GPU the first call in it captures a CUDA graph, which calls of the same sampler, denoiser, operator, sigma,
    seed and shape replay. The graphs live, with their memory, as long as what this returns does. On a CPU it does
    nothing.

    ::

        with emfast.graphs():
            for y, ids in batches:
                x = sampler(denoiser, y, operator, ids=ids)
    """
    return Graphs()


def graphed(function: Callable[..., Tensors], *key: object, network: nn.Module | None = None) -> Graphed:
    """Returns the function as a `Graphed`, in a block of `graphs` the one kept there for that key if there is one.

    Arguments:
        function: The function.
        key: Everything but its arguments that it depends on: numbers, and objects it holds, which are the same if they
            are equal; a graph does not outlive a change of their numbers either.
        network: What it computes with; a graph does not outlive a change of it that the graph would not see.
    """
    current = _current.get()
    if current is None:
        return Graphed(function)
    name = tuple(part if _hashable(part) else id(part) for part in key)
    state = tuple(map(_numbers, key)), None if network is None else _state(network)
    before, found = current.kept.pop(name, (None, None))
    if found is None or before != state:
        found = Graphed(function)
    current.kept[name] = (state, found)  # a dictionary keeps its order: the graph used last is now the last in it
    for oldest in list(current.kept)[:-KEPT]:
        del current.kept[oldest]
    return found


def _hashable(part: object) -> bool:
    try:
        hash(part)
    except TypeError:
        return False
    return True


def _state(network: nn.Module) -> Hashable:
    """Returns what a graph holds of a network: the places of its weights, and what its modules are and are set to.

    The weights' values are no part of it: a replay reads them where they lie.
    """
    tensors = itertools.chain(network.parameters(), network.buffers())
    weights = tuple((t.data_ptr(), t.dtype, t.shape, t.stride()) for t in tensors)
    return weights, tuple(map(_settings, network.modules()))


def _numbers(part: object) -> Hashable:
    """Returns what an object is set to, as an operator is to its hyper-parameters: a graph holds it as it was."""
    own = getattr(part, "__dict__", {})
    return tuple((name, value) for name, value in own.items() if isinstance(value, str | int | float | torch.dtype))


def _settings(module: nn.Module) -> Hashable:
    own = vars(module)
    kinds = (str, int, float, tuple, torch.dtype)
    simple = tuple((name, value) for name, value in own.items() if isinstance(value, kinds))
    hooks = tuple(len(own[name]) for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"))
    return id(module), type(module), "forward" in own, hooks, repr(simple)
