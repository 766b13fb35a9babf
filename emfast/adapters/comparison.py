"""Whether a module computes what its accelerated self does: by numbers, once.

Changed copies of these networks live in many repositories, under the names of the originals. A copy of the module, in
float32 on a CPU, with weights that hide nothing (those of untrained networks are often zero), is computed both ways.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from emfast.adapters.parts import HOOKS
from emfast.adapters.swap import Settings, Swapped, begin, swap

TOLERANCE = 1e-3  # of the largest value of an image: rounding is a hundredth of it, another formula more


def difference(module: nn.Module, mixin: type[Swapped]) -> str:
    """Returns how a module differs from what it is to be swapped by, and "" if it does not.

    Arguments:
        module: The module, not swapped; the modules inside may be.
        mixin: What it is to be swapped by.
    """
    try:
        twin = _twin(module, {})
        _fill(twin)
        arguments: Any = mixin.example(twin)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            before = _output(twin, arguments)
            swap(twin, mixin, Settings())
            after = _output(twin, arguments)
    except Exception as error:  # whatever foreign code raises: it is not what is known
        return f"it cannot be computed on an example: {type(error).__name__}: {error}".splitlines()[0]
    if before.shape != after.shape:
        return f"it returns {tuple(before.shape)} where {tuple(after.shape)} was expected"
    scale = before.abs().flatten(1).amax(1)
    ratio = ((before - after).abs().flatten(1).amax(1) / scale.clamp_min(1e-30)).max().item()
    return "" if ratio <= TOLERANCE else f"it computes something else: its output differs by {ratio:.1e}"


def _twin(module: nn.Module, made: dict[int, Any]) -> Any:
    """Returns a copy of the very class in float32 on a CPU, without hooks; some classes (EDM's) copy as another one."""
    if id(module) in made:
        return made[id(module)]
    twin = made[id(module)] = type(module).__new__(type(module))
    twin.__dict__.update(vars(module), training=False, **{name: OrderedDict() for name in HOOKS})
    copies: dict[str, Callable[[Any], Any]] = {
        "_parameters": lambda parameter: nn.Parameter(_plain(parameter), False),
        "_buffers": _plain,
        "_modules": lambda child: _twin(child, made),
    }
    for kind, copied in copies.items():
        twin.__dict__[kind] = {name: None if x is None else copied(x) for name, x in vars(module)[kind].items()}
    if isinstance(module, Swapped):
        begin(twin, Settings())
    return twin


def _plain(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float32 if x.is_floating_point() else x.dtype, copy=True)


def _output(module: nn.Module, arguments: tuple[Any, ...]) -> Tensor:
    copies = [x.clone() if isinstance(x, Tensor) else x for x in arguments]  # some networks write into their inputs
    output: Tensor = module(*copies)
    return output


def _fill(module: nn.Module) -> None:
    """Gives a module weights of usual size."""
    generator = torch.Generator().manual_seed(0)
    for weight in module.parameters():
        if weight.dim() < 2:
            weight.uniform_(0.5, 1.5, generator=generator)
        else:
            size = (3 / max(1, weight[0].numel())) ** 0.5
            weight.uniform_(-size, size, generator=generator)
