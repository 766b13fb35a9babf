"""JSON files that hold an object with keys known beforehand, and a checksum: a flipped digit is still JSON."""

from __future__ import annotations

import os
import zlib
from typing import Any

from emfast._check import check
from emfast._files import DELETE, read_json, write_json
from emfast._json import to_json
from emfast._safetensors import CHECKSUM


def write_record(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Writes an object to a JSON file atomically, with a checksum that `read_record` verifies.

    Arguments:
        path: The file.
        record: What it is to hold.
    """
    write_json(path, {**record, CHECKSUM: _checksum(record)})


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
    expected, found = record.pop(CHECKSUM, None), _checksum(record)
    check(expected in (None, found), "read_record", str(path), f"to have checksum {expected}", found, DELETE)
    return dict(record)


def _checksum(record: dict[str, Any]) -> str:
    """Returns the CRC-32 of an object, as 8 hexadecimal digits."""
    return f"{zlib.crc32(to_json(record).encode()):08x}"


def check_record(function: str, name: str, record: Any, **kinds: Any) -> None:
    """Raises a ValueError unless a JSON value is an object whose keys hold values of the given types.

    Arguments:
        function: The public function the caller used.
        name: Where the value is from.
        record: The value.
        kinds: The type, or types, of the value of each key.
    """
    check(isinstance(record, dict), function, name, "to hold an object", record, DELETE)
    for key, kind in kinds.items():
        good = isinstance(record.get(key), kind)
        check(good, function, name, f"to hold a fitting {key!r}", record.get(key, "none"), DELETE)
