"""The names of files and folders that are being written, and the removal of what killed writers have left."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from emfast._process import identity, is_gone

TEMPORARY = ".tmp-"
KEPT = 32  # characters of a name, which itself may be as long as the file system allows


def temporary_name(path: Path) -> Path:
    """Returns a new name beside a path, with this process in it: a leftover is known by that its process is gone."""
    return path.parent / f"{TEMPORARY}{identity()}.{secrets.token_hex(4)}-{path.name[:KEPT]}"


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Removes the temporaries of writers on this machine that were killed.

    Whose they are is in their names. Those of other machines stay: a lock that would tell whether their writers live
    holds on one machine only, on many shared file systems.
    """
    for entry in Path(folder).glob(TEMPORARY + "*"):
        if is_gone(entry.name.removeprefix(TEMPORARY).split("-")[0].rpartition(".")[0]):
            remove_tree(entry)


def remove_tree(path: Path) -> None:
    """Removes a file, or a folder with what is in it, as far as that can be removed; of a link the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
