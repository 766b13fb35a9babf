"""What adapters look at, beyond the name of a class, before they swap its modules."""

from types import CodeType
from typing import Any

from torch import nn

from emfast.nn.swap import original

# What any forward may read: torch and its functions that neither compute nor learn.
PLUMBING = (
    "torch th nn F functional np to type float dtype shape device len size dim float32 float16 reshape view unsqueeze"
    " squeeze flatten contiguous chunk split unbind cat append pop range isinstance str max min"
)


def reads_only(kind: type, methods: str, names: str) -> bool:
    """Returns whether methods of a class read no name (of a module, an attribute, a function) but known ones.

    Changed copies of these projects live in many repositories: a method that reads other names computes other things.

    Arguments:
        kind: The class.
        methods: The names of the methods, separated by spaces.
        names: The known names, separated by spaces, beside those of `PLUMBING`.
    """
    codes = [getattr(getattr(kind, method, None), "__code__", None) for method in methods.split()]
    known = {*PLUMBING.split(), *names.split()}
    return all(isinstance(code, CodeType) and _names(code) <= known for code in codes)


def _names(code: CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def is_square(conv: Any, size: int, stride: int, padding: int) -> bool:
    """Returns whether a module is a dense Conv2d of these sizes, with zeros around the image."""
    kind = original(conv) if isinstance(conv, nn.Module) else None
    if kind is not nn.Conv2d or conv.padding_mode != "zeros" or conv.groups != 1 or conv.dilation != (1, 1):
        return False
    same = conv.kernel_size == (size, size) and conv.stride == (stride, stride)
    return same and conv.padding == (padding, padding)
