"""Argument checks: every error of emfast is one sentence of the same form, and says how to put it right.

torch is not imported here: the command has checks to make, and mistakes to tell, before it needs torch.
"""

from __future__ import annotations

import math
import stat
import sys
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def check(
    condition: bool,
    function: str,
    name: str,
    requirement: str | Callable[[], str],
    value: object,
    fix: str | None = None,
    error: type[Exception] = ValueError,
) -> None:
    """Raises `<function>: expected <name> <requirement>, got <value>. <fix>` unless the condition holds.

    Arguments:
        condition: The fact that must hold.
        function: The public function the caller used.
        name: The argument at fault.
        requirement: What it must be, as the rest of a sentence: "to be positive", "of shape (B, C)"; or a function that
            says it, where it holds sizes: torch.compile would compile anew for every size that is written out.
        value: What came instead; a tensor is shown by its shape and dtype.
        fix: A sentence that tells the caller what to do, without its full stop.
        error: ValueError (value or shape), TypeError (kind), NotImplementedError, RuntimeError (machine state).
    """
    if not condition:
        text = requirement if isinstance(requirement, str) else requirement()
        raise error(message(function, name, text, value, fix))


def message(function: str, name: str, requirement: str, value: object, fix: str | None = None) -> str:
    """Returns the sentence that `check` raises.

    Arguments:
        function, name, requirement, value, fix: As of `check`.
    """
    name = name or "''"  # of an empty path
    sentence = f"{function}: expected {name} {requirement}, got {show(value)}."
    return f"{sentence} {fix}." if fix else sentence


MANY = 100_000_000  # more than any count: a run of as many steps never ends
MOST = {"size": 32_768, "crop": 32_768, "layers": 1_000, "batch_size": 1_000_000, "rounds": 1_000_000}
LOUD = 1000.0  # the standard deviation of noise that is no mistake, at most; images are in [-1, 1]


def check_sigma(sigma: float, function: str) -> None:
    """Raises the sentence of `check` unless a standard deviation of measurement noise is one that may be.

    Arguments:
        sigma: The standard deviation, in data units.
        function: The public function the caller used.
    """
    check_numbers(function, sigma=sigma)
    check(sigma >= 0, function, "sigma", "to be >= 0", sigma)
    check(sigma <= LOUD, function, "sigma", f"to be <= {LOUD:g}, in data units ([-1, 1])", sigma)


def check_numbers(function: str, **values: object) -> None:
    """Raises the sentence of `check` unless values are real numbers, and no texts or tensors of them; None passes.

    Arguments:
        function: The public function or class the caller used.
        values: The values by their names.
    """
    for name, value in values.items():
        found = repr(value) if isinstance(value, str) else value
        check(value is None or isinstance(value, Real), function, name, "to be a number", found, error=TypeError)


def check_whole(function: str, **values: object) -> None:
    """Raises the sentence of `check` unless values are whole numbers, which 2.0 is not; None passes.

    Arguments:
        function: The public function or class the caller used.
        values: The values by their names.
    """
    check_numbers(function, **values)
    for name, value in values.items():
        good = value is None or (isinstance(value, Integral) and not isinstance(value, bool))
        check(good, function, name, "to be a whole number", value, error=TypeError)


def check_ids(ids: object, function: str) -> None:
    """Raises the sentence of `check` unless ids are a tensor, on whose device numbers are drawn; None passes.

    Arguments:
        ids: The ids.
        function: The public function the caller used.
    """
    check(ids is None or _is_tensor(ids), function, "ids", "to be a tensor", type(ids), error=TypeError)


def check_seed(seed: Any, function: str) -> int:
    """Returns a seed as an int, for numbers are drawn from its text: those of 3.0, True or a tensor are others.

    Arguments:
        seed: A whole number, of Python or of numpy.
        function: The public function or class the caller used.
    Raises:
        TypeError: If it is something else.
    """
    good = isinstance(seed, Integral) and not isinstance(seed, bool)
    found = repr(seed) if isinstance(seed, str) or _is_tensor(seed) else seed
    check(good, function, "seed", "to be a whole number", found, "int(seed) makes one", TypeError)
    return int(seed)


def check_positive(group: str, config: object, *names: str) -> None:
    """Raises the sentence of `check` unless numbers are positive and finite, and counts not beyond all use.

    Arguments:
        group: The group of the config that they belong to.
        config: What has them as attributes; None passes.
        names: The attributes.
    """
    for name in names:
        value = getattr(config, name)
        good = value is None or 0 < value < math.inf
        check(good, "config", f"{group}.{name}", "to be positive and finite", value)
        most = MOST.get(name, MANY)
        good = not isinstance(value, int) or value <= most
        check(good, "config", f"{group}.{name}", f"to be <= {most}", value)


def check_finite(
    tensors: Mapping[str, Tensor], function: str, name: str, fix: str | None = None, error: type[Exception] = ValueError
) -> None:
    """Raises the sentence of `check`, with the first tensor at fault in it, unless all numbers are finite.

    Arguments:
        tensors: The tensors by name; what holds no fractions is passed over.
        function: The public function the caller used.
        name: Where they are from, a file or an argument.
        fix: A sentence that tells the caller what to do, without its full stop.
        error: The class of the error.
    """
    for key, tensor in tensors.items():
        if _is_tensor(tensor) and (tensor.is_floating_point() or tensor.is_complex()):
            good = bool(tensor.isfinite().all())
            check(good, function, name, "to hold finite numbers", f"NaN or infinity in {key}", fix, error)


def show(value: Any) -> str:
    """Returns a value as an error sentence shows it: tensors by shape and dtype, the rest shortened."""
    if _is_tensor(value):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, type):
        return value.__name__
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def check_regular(function: str, path: Path) -> None:
    """Raises the sentence of `check` for a pipe, a socket or a device: to read one may never end.

    Arguments:
        function: The public function the caller used.
        path: What is to be read.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # reading it has its own error
        return
    good = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    check(good, function, str(path), "to be a file or a folder", "a pipe, a socket or a device", "Give a regular file")


def _is_tensor(value: Any) -> bool:
    """Whether a value is a tensor, of which there are none before torch is imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
