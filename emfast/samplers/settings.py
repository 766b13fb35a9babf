"""What the hyper-parameters of samplers may be."""

import math
from collections.abc import Callable
from dataclasses import fields
from numbers import Real
from typing import Any, NamedTuple

from emfast._check import check, check_numbers


class Rule(NamedTuple):
    """What must hold of a number, and how a sentence says so."""

    holds: Callable[[Any], bool]
    requirement: str


COUNT = Rule(lambda value: 0 < value <= 1_000_000 and value == int(value), "to be a whole number in 1 ... 1000000")
SHARE = Rule(lambda value: 0 <= value <= 1, "to be in [0, 1]")
LEVEL = Rule(lambda value: value >= 0, "to be >= 0 and finite")
# Below, the terms of the systems that are solved cancel in float32, and a sampler would pass over the observation.
ASSUMED = Rule(lambda value: value >= 1e-4, "to be >= 0.0001 and finite")
POSITIVE = Rule(lambda value: value > 0, "to be > 0 and finite")
RULES = {
    "steps": COUNT,
    "flow": COUNT,
    "iterations": COUNT,
    "order": Rule(lambda value: value in (1, 2), "to be 1 or 2"),
    "eta": SHARE,
    "zeta": SHARE,
    "scale": LEVEL,
    "sigma_min": ASSUMED,
    "width": POSITIVE,
    "weight": POSITIVE,
    "noise": POSITIVE,
}


def check_settings(sampler: Any) -> None:
    """Looks at the fields of a dataclass that hold numbers, by their names; None passes where it is the default.

    Raises:
        TypeError: If one is no number, though its default is.
        ValueError: If it is a number that means nothing to a sampler.
    """
    kind = type(sampler).__name__
    for field in [field for field in fields(sampler) if field.name in RULES]:
        value, rule = getattr(sampler, field.name), RULES[field.name]
        if isinstance(field.default, Real):
            check(value is not None, kind, field.name, "to be a number", value, error=TypeError)
            check_numbers(kind, **{field.name: value})
        if isinstance(value, Real):
            good = math.isfinite(value) and rule.holds(value)
            check(good, kind, field.name, rule.requirement, value)
