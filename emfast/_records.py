"""JSON files that hold an object with keys known beforehand."""

from __future__ import annotations

import os
from typing import Any

from emfast._check import check
from emfast._files import DELETE, read_json


def read_record(path: str | os.PathLike[str], **kinds: Any) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Arguments:
        path: The file.
        kinds: The type, or tuple of types, of each key that it must have.
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or holds something else; the sentence names it.
    """
    record = read_json(path)
    check_record("read_record", str(path), record, **kinds)
    return dict(record)


def check_record(function: str, name: str, record: Any, **kinds: Any) -> None:
    """Raises a ValueError unless a JSON value is an object whose keys hold values of the given types."""
    check(isinstance(record, dict), function, name, "to hold an object", record, DELETE)
    for key, kind in kinds.items():
        good = isinstance(record.get(key), kind)
        check(good, function, name, f"to hold a fitting {key!r}", record.get(key, "none"), DELETE)
