"""A folder of compiled kernels that may be moved, though Triton notes absolute paths in it and finds nothing elsewhere.

`emfast precompile` notes where it has compiled. Where the folder lies elsewhere by now, the paths are written anew,
once, before the first kernel is launched.
"""

import json
import os
import warnings
from functools import cache
from pathlib import Path

NOTE = "emfast-folder.json"


@cache
def settle(folder: str) -> None:
    """Writes the paths in a cache anew if it was moved; several processes may do so at once.

    Arguments:
        folder: The cache, as TRITON_CACHE_DIR has it; "" for none.
    """
    note, here = Path(folder) / NOTE, str(Path(folder).resolve())
    if not folder or not note.is_file() or json.loads(note.read_text()) == here:
        return
    try:
        relocate(Path(here), Path(here))
    except OSError as error:
        warnings.warn(
            f"kernels: expected {folder} to be writable, since it was moved and Triton notes paths in it, got {error}. "
            "Kernels are compiled again.",
            stacklevel=2,
        )


def relocate(folder: Path, place: Path) -> None:
    """Writes the paths in a cache as they are when it lies in a place."""
    for group in folder.glob("*/__grp__*.json"):
        names = json.loads(group.read_text())["child_paths"]
        own = place.resolve() / group.parent.name
        _replace(group, {"child_paths": {name: str(own / name) for name in names}})
    _replace(folder / NOTE, str(place.resolve()))


def mark(folder: Path) -> None:
    """Notes where a cache lies now."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / NOTE).is_file():
        _replace(folder / NOTE, str(folder.resolve()))


def _replace(path: Path, content: object) -> None:
    """Writes a file as a whole."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content))
    os.replace(temporary, path)
