"""How a module becomes its accelerated self and back: by its class, in place; parameters, names and hooks stay."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from emfast.adapters.parts import EVERYWHERE, Part, Snapshot, first_obstacle, is_hooked, original_class, replaced_method
from emfast.nn.prepared import forget

STATE = "_emfast"
_classes: dict[Any, type] = {}
_modules: WeakValueDictionary[int, Any] = WeakValueDictionary()  # those that are accelerated, by their id


@dataclass(frozen=True)
class Settings:
    """What accelerate() was asked for: the compute precision, and the module's place in the network."""

    dtype: torch.dtype | None = None
    entry: bool = False  # features stay in the compute precision after this module
    exit: bool = False  # features leave the network here, contiguous, in the dtype of the parameters


@dataclass
class State:
    """What an accelerated module knows of itself."""

    settings: Settings
    seen: Snapshot | None = field(default=None, compare=False)
    obstacle: str = field(default="", compare=False)

    def __deepcopy__(self, memo: Any) -> "State":
        return State(self.settings)  # a copy looks at itself


class Swapped:
    """A mixin in front of a module's own class: computes faster what that computes, while its parts are known.

    A subclass gives `accelerated`, with the parameters of the module's own forward, which returns NotImplemented for
    arguments that it does not know; `parts`, those that it does not call; and `example`. Attributes are the module's.
    """

    hands_on = False  # whether it only calls the modules inside, which are accelerated, or left, one by one

    def accelerated(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the module's own forward does, or NotImplemented."""
        raise NotImplementedError

    def parts(self) -> Iterable[Part]:
        """Yields the parts that are not called, and what is taken for granted about them."""
        return ()

    def example(self) -> tuple[Any, ...]:
        """Returns arguments to compare both ways with: two images, in float32 on a CPU."""
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's own."""
        if is_known(self):
            result = self.accelerated(*args, **kwargs)
            if result is not NotImplemented:
                return result
        forward = super().forward  # type: ignore[misc]
        if self.settings().dtype is None or self.hands_on:
            return forward(*args, **kwargs)
        return _in_own_dtype(self, forward, args, kwargs)

    def settings(self) -> Settings:
        """Returns what accelerate() was asked for."""
        found: Settings = self.__dict__[STATE].settings
        return found

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles as the original module does, which may have its own way (EDM's), with the way back."""
        base: Any = original_class(self)
        plain = base.__new__(base)
        plain.__dict__.update(self.__dict__)
        return _swapped, (plain, type(self).__bases__[0], plain.__dict__.pop(STATE).settings)


def is_known(module: Any) -> bool:
    """Returns whether an accelerated module and its parts are, now, what it knows.

    Looks closely once per change. Hooks that are registered for all modules see every module only without emfast.
    """
    return _is_known(id(module))


def _is_known(number: int) -> bool:
    module: Any = _modules[number]
    state: State = module.__dict__[STATE]
    if state.seen is None or not state.seen.holds():
        state.obstacle = obstacle(module)
        state.seen = Snapshot(module, deep=not module.hands_on)
    return not (state.obstacle or any(EVERYWHERE))


# torch.compile calls it while it traces, and takes the answer for a constant. That is what
# torch.compiler.assume_constant_result does, but without the import of torch's compiler. Before torch 2.13 a module can
# be no argument of such a function, but its number can.
_is_known._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_plain(module: Any) -> bool:
    """Returns whether nothing stands between the caller of an accelerated module and what it computes: no hook sees it.

    Arguments:
        module: The module.
    """
    return not (is_hooked(module) or replaced_method(module)) and bool(is_known(module))


def obstacle(module: Any, mixin: Any = None) -> str:
    """Returns why a module has to compute as its own class does, and "" if it need not.

    Arguments:
        module: The module, swapped or not.
        mixin: What it is swapped by; its own by default.
    """
    mixin = mixin or type(module)
    replaced = replaced_method(module)
    if replaced and (replaced != "forward" or "forward" not in vars(module)):  # its own forward calls this one, if any
        return f"{replaced} has been replaced"
    try:
        return first_obstacle(mixin.parts(module))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # parts are missing, or others
        return str(error)


def swap(module: nn.Module, mixin: type[Swapped], settings: Settings) -> None:
    """Puts a mixin's forward in front of a module's own.

    Arguments:
        module: The module; its class becomes another, its parameters stay.
        mixin: What computes instead.
        settings: How.
    """
    module.__class__ = swapped_class(mixin, original_class(module))
    begin(module, settings)


def begin(module: nn.Module, settings: Settings) -> None:
    """Gives a module of a swapped class its state.

    Arguments:
        module: The module.
        settings: How it is accelerated.
    """
    module.__dict__[STATE] = State(settings)
    _modules[id(module)] = module


def _in_own_dtype(module: Any, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Returns what a module's own forward does with features that may have come in the compute precision."""
    parameters = list(module.parameters())
    own = next((p for p in parameters if p.dim() > 2), parameters[0]).dtype
    like = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)).dtype
    args, kwargs = tree_map_only(
        Tensor, lambda x: x.to(own) if x.dtype == module.settings().dtype else x, (args, kwargs)
    )
    return tree_map_only(Tensor, lambda y: y.to(like), forward(*args, **kwargs))


def unswap(module: nn.Module) -> None:
    """Gives a module its own class back, and frees what was prepared for its weights."""
    module.__class__ = original_class(module)
    module.__dict__.pop(STATE, None)
    forget(module.parameters())


def swapped_class(mixin: type[Swapped], base: type) -> Any:
    """Returns the subclass of a module's class that computes as the mixin does; it has the module's name.

    Arguments:
        mixin: What computes instead.
        base: The module's class.
    """
    if (mixin, base) not in _classes:
        names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "_original_class": base}
        derived: Any = type(base.__name__, (mixin, base), names)
        derived.forward = _with_signature(mixin, base)
        _classes[mixin, base] = derived
    return _classes[mixin, base]


def _with_signature(mixin: Any, base: Any) -> Callable[..., Any]:
    """Returns the mixin's forward, in which whoever asks what it takes sees the module's own."""

    @wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return mixin.forward(self, *args, **kwargs)

    return forward


def precision(settings: Settings, x: Tensor) -> torch.dtype:
    """Returns the dtype to compute in: the one asked for, else autocast's, else that of x.

    Arguments:
        settings: How the network is accelerated.
        x: An input.
    """
    if settings.dtype is not None:
        return settings.dtype
    device = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def features(like: Tensor | nn.Parameter, *sizes: int) -> Tensor:
    """Returns two images or vectors to compare with: one tiny, where an epsilon shows, and one large, where limits do.

    Arguments:
        like: A tensor on their device, of their dtype.
        sizes: Their sizes, without that of the batch.
    """
    generator = torch.Generator(like.device).manual_seed(1)
    x = torch.randn(2, *sizes, generator=generator, device=like.device, dtype=like.dtype)
    x[0] *= 0.01
    x[1] *= 3
    return x


def _swapped(module: nn.Module, mixin: type[Swapped], settings: Settings) -> nn.Module:
    swap(module, mixin, settings)
    return module
