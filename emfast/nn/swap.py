"""How a module becomes its accelerated self and back: by its class, in place; parameters, names and hooks stay."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emfast.nn.prepared import forget

SETTINGS = "_emfast"
_classes: dict[Any, type] = {}


@dataclass(frozen=True)
class Settings:
    """What accelerate() was asked for: the compute precision, and the module's place in the network."""

    dtype: torch.dtype | None = None
    entry: bool = False  # features stay in the compute precision after this module
    exit: bool = False  # features leave the network here, contiguous, in the dtype of the parameters


class Swapped:
    """A mixin that overrides forward of a module of another package. Attributes are those of that module."""

    hands_on = False  # whether it only calls the modules inside, which are accelerated, or left, one by one

    def settings(self) -> Settings:
        """Returns what accelerate() was asked for."""
        found: Settings = self.__dict__[SETTINGS]
        return found

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles as the original module does, which may have its own way (EDM's), with the way back."""
        base: Any = original(self)
        plain = base.__new__(base)
        plain.__dict__.update(self.__dict__)
        return _swapped, (plain, type(self).__bases__[0], plain.__dict__.pop(SETTINGS))


def swap(module: nn.Module, mixin: type[Swapped], settings: Settings) -> None:
    """Puts a mixin's forward in front of a module's own."""
    module.__class__ = swapped_class(mixin, original(module))
    module.__dict__[SETTINGS] = settings


def unswap(module: nn.Module) -> None:
    """Gives a module its own class back, and frees what was prepared for its weights."""
    module.__class__ = original(module)
    module.__dict__.pop(SETTINGS, None)
    forget(list(module.parameters()))


def swapped_class(mixin: type[Swapped], base: type) -> Any:
    """Returns the subclass of a module's class that computes as the mixin does; it has the module's name."""
    if (mixin, base) not in _classes:
        _classes[mixin, base] = _derive(mixin, base)
    return _classes[mixin, base]


def _derive(mixin: type[Swapped], base: type) -> type:
    return type(base.__name__, (mixin, base), {"__module__": base.__module__, "__qualname__": base.__qualname__})


def original(module: Any) -> type:
    """Returns the module's class before swap()."""
    return type(module).__bases__[1] if isinstance(module, Swapped) else type(module)


def is_plain(module: Any, kind: type[nn.Module]) -> bool:
    """Returns whether a module is exactly of a class, without hooks, so that its parameters may be read directly."""
    return type(module) is kind and not is_hooked(module)


def is_hooked(module: Any) -> bool:
    """Returns whether calling a module does more than its forward."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(module.__dict__.get(name) for name in hooks)


def precision(settings: Settings, x: Tensor) -> torch.dtype:
    """Returns the dtype to compute in: the one asked for, else autocast's, else that of x."""
    if settings.dtype is not None:
        return settings.dtype
    device = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def _swapped(module: nn.Module, mixin: type[Swapped], settings: Settings) -> nn.Module:
    swap(module, mixin, settings)
    return module
