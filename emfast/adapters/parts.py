"""What modules of other packages are made of: whether it is what their accelerated selves know, and whether it changed.

An accelerated module reads the parameters of its parts and does not call them. It may do so only while every part is
exactly of a known class, computes by the method of that class, has no hooks, and has the attributes that are taken for
granted. Whatever else it is, now, computes as it would without emfast.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.modules import module as torch_module

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
EVERYWHERE = tuple(getattr(torch_module, f"_global{name}") for name in HOOKS)  # hooks of all modules
METHODS = ("__call__", "forward", "_forward", "_conv_forward")  # by which a module may compute

_methods: Any = WeakKeyDictionary()  # a class -> its methods when it was first looked at


class Part(NamedTuple):
    """A part that is not called, and what is taken for granted about it.

    Arguments:
        name: Its name in the module.
        module: The part.
        kinds: The classes it may have: classes, names, or "module:name".
        attributes: Its attributes that are not read.
        called: Whether it is called after all, so that it may have hooks.
    """

    name: str
    module: Any
    kinds: tuple[type | str, ...]
    attributes: Mapping[str, Any] = MappingProxyType({})
    called: bool = False

    def obstacle(self) -> str:
        """Returns what is not as it is taken for granted, and "" if all is."""
        kind = original_class(self.module)
        if not any(kind is known or (isinstance(known, str) and _is_named(kind, known)) for known in self.kinds):
            return f"{self.name} is of class {kind.__name__}"
        if is_hooked(self.module) and not self.called:
            return f"{self.name} has hooks"
        if replaced := replaced_method(self.module):
            return f"{self.name}.{replaced} has been replaced"
        for attribute, value in self.attributes.items():
            found = getattr(self.module, attribute, None)
            if type(found) is not type(value) or found != value:
                return f"{self.name}{'.' if self.name else ''}{attribute} is {found!r}"
        return ""


def square(name: str, conv: Any, size: int, stride: int = 1, padding: int | None = None) -> Part:
    """Returns a part that is a dense Conv2d with zeros around the image.

    Arguments:
        name: Its name.
        conv: The convolution.
        size: The size of its kernels.
        stride: The stride.
        padding: The zeros; by default as many as keep the size of the image.
    """
    return Part(name, conv, (nn.Conv2d,), square_attributes(size, stride, padding))


def square_attributes(size: int, stride: int = 1, padding: int | None = None) -> dict[str, Any]:
    """Returns what is taken for granted about a dense Conv2d with zeros around the image; arguments as of `square`.

    Arguments:
        size, stride, padding: As of `square`.
    """
    padding = size // 2 if padding is None else padding
    sizes = {"kernel_size": (size, size), "stride": (stride, stride), "padding": (padding, padding)}
    return sizes | {"dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}


def itself(module: Any, **attributes: Any) -> Part:
    """Returns an accelerated module as a part of itself: what is taken for granted about its own attributes.

    Arguments:
        module: The module.
        attributes: Its attributes.
    """
    return Part("", module, (original_class(module),), attributes, called=True)


def norm(name: str, module: Any, *kinds: type | str) -> Part:
    """Returns a part that is a group normalisation with weight and bias.

    Arguments:
        name: Its name.
        module: The normalisation.
        kinds: Its classes; torch's by default.
    """
    return Part(name, module, kinds or (nn.GroupNorm,), {"affine": True})


def first_obstacle(parts: Iterable[Part]) -> str:
    """Returns the first thing that is not as it is taken for granted, and "" if all is.

    Arguments:
        parts: The parts.
    """
    return next(filter(None, (part.obstacle() for part in parts)), "")


def original_class(module: Any) -> type:
    """Returns the class of a module, of an accelerated one that which it had before."""
    kind = type(module)
    found: type = getattr(kind, "_original_class", kind)
    return found


def is_hooked(module: Any) -> bool:
    """Returns whether calling a module does more than its forward."""
    own = module.__dict__
    return any(own.get(name) for name in HOOKS)


def replaced_method(module: Any) -> str:
    """Returns the name of a method that is not that of the module's class, as the class was at first, and "" if none.

    Arguments:
        module: The module, or another object that computes.
    """
    kind, own = original_class(module), vars(module)
    for name, method in _methods_of(kind).items():
        if name in own or getattr(kind, name, None) is not method:
            return name
    return ""


def _methods_of(kind: type) -> dict[str, Any]:
    """Returns the methods that a class had when it was first looked at."""
    if kind not in _methods:
        _methods[kind] = {name: getattr(kind, name) for name in METHODS if hasattr(kind, name)}
    found: dict[str, Any] = _methods[kind]
    return found


def _is_named(kind: type, name: str) -> bool:
    module, _, name = name.rpartition(":")
    return kind.__name__ == name and module in ("", kind.__module__)


class Snapshot:
    """What a module was like, to see whether anything has changed since: some microseconds a module.

    Attributes are compared by dictionary, which is quick as long as values are the same objects; parameters may change,
    and so may what is inside of buffers.

    Arguments:
        module: The module.
        deep: Whether all modules inside belong to it.
    """

    def __init__(self, module: nn.Module, *, deep: bool = True) -> None:
        modules = list(module.modules()) if deep else [module]
        self._attributes = [(vars(part), dict(vars(part))) for part in modules]
        self._children = [(part._modules, dict(part._modules)) for part in modules]
        self._hooks = [vars(part)[name] for part in modules[1:] for name in HOOKS]
        self._hooked = any(self._hooks)
        self._methods = {kind: dict(_methods_of(kind)) for kind in map(original_class, modules)}

    def holds(self) -> bool:
        """Returns whether nothing has changed."""
        try:
            same = all(now == then for now, then in self._attributes) and self._children_are_the_same()
        except (RuntimeError, ValueError):  # arrays compare element by element
            return False
        return (
            same
            and any(self._hooks) == self._hooked
            and all(
                getattr(kind, name, None) is method
                for kind, methods in self._methods.items()
                for name, method in methods.items()
            )
        )

    def _children_are_the_same(self) -> bool:
        return all(now == then for now, then in self._children)
