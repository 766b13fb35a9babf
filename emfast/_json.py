"""JSON as its standard has it, which knows neither NaN nor infinity."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(value: Any, indent: int | None = None) -> str:
    """Returns a value as JSON, which has no NaN and no infinity: null stands for them.

    Arguments:
        value: Numbers, texts, and lists and mappings of them.
        indent: Spaces of each level; none: everything in one line.
    """
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    """Returns nested mappings and lists with None in the place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
