"""Files that are never half-written: written under a temporary name in the same folder, synced, renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
from torch import Tensor

from emfast import _safetensors
from emfast._check import message
from emfast._json import to_json
from emfast._leftovers import TEMPORARY, remove_leftovers, remove_tree, temporary_name
from emfast._safetensors import CHECKSUM

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_file(path: str | os.PathLike[str], write: Callable[[BinaryIO], None], *, replace: bool = True) -> None:
    """Writes a file atomically: after a kill at any moment the path holds the old or the new content.

    Arguments:
        path: The file. Missing parent folders are created.
        write: Writes the content to the open binary file that it is given (readable and seekable too).
        replace: Whether a file that is there is replaced. If not, it stays: the first of several writers wins.
    Raises:
        OSError: If the folder cannot be written or the disk is full; nothing partial is left.
    """
    path = Path(path)
    with _sentence(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        temporary = temporary_name(path)
        try:
            with open(temporary, "x+b") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.replace(temporary, path)
            else:
                _place(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync(path.parent)


def write_bytes(path: str | os.PathLike[str], content: bytes, *, replace: bool = True) -> None:
    """Writes bytes to a file atomically.

    Arguments:
        path: The file.
        content: What it is to hold.
        replace: Whether a file that is there is replaced; else it stays.
    """

    def write(file: BinaryIO) -> None:
        file.write(content)

    write_file(path, write, replace=replace)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Writes text to a file atomically, as UTF-8.

    Arguments:
        path: The file.
        content: What it is to hold.
    """
    write_bytes(path, content.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a value to a file atomically, as indented JSON.

    Arguments:
        path: The file.
        value: What it is to hold; see `to_json`.
    """
    write_text(path, to_json(value, indent=2) + "\n")


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    replace: bool = True,
) -> None:
    """Writes tensors to a safetensors file atomically, with a checksum that `read_tensors` verifies.

    Arguments:
        path: The file.
        tensors: The tensors by name, on any device; views and shared storage are fine.
        metadata: Texts stored in the header beside the tensors.
        replace: Whether a file that is there is replaced; see `write_file`.
    Raises:
        OSError: If the file cannot be written.
    """
    write_file(path, lambda file: _safetensors.write(file, tensors, metadata or {}), replace=replace)


def write_folder(path: str | os.PathLike[str], fill: Callable[[Path], None]) -> None:
    """Writes a whole folder, replacing an older one of that name.

    A folder cannot be replaced in one step. After a kill between the two renames the old one waits under a
    temporary name, and `settle_folder` (called here too) puts it back.

    Arguments:
        path: The folder.
        fill: Writes the content into the empty folder that it is given.
    Raises:
        OSError: If it cannot be written or the disk is full; the old folder stays.
    """
    path = Path(path)
    settle_folder(path)
    with _sentence(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        temporary = temporary_name(path)
        temporary.mkdir()
        try:
            fill(temporary)
            for entry in sorted(temporary.rglob("*"), reverse=True):
                _sync(entry)
            _sync(temporary)
            if path.exists():
                os.replace(path, _aside(path))
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            settle_folder(path)
            raise
        _sync(path.parent)
        settle_folder(path)


def settle_folder(path: str | os.PathLike[str]) -> None:
    """Ends what a killed `write_folder` left open: call it before reading a folder that may be replaced."""
    path = Path(path)
    aside = _aside(path)
    if not aside.exists():
        return
    if path.exists():
        remove_tree(aside)
    else:
        os.replace(aside, path)


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Removes a folder: its name is gone at once. What a kill leaves of it goes with the next call for that name.

    Of a link to a folder it is the link that goes.
    """
    path = Path(path)
    gone = path.parent / f".gone-{path.name}"
    remove_tree(gone)
    if path.exists():
        os.replace(path, gone)
        remove_tree(gone)


def is_unused(folder: str | os.PathLike[str], *others: str) -> bool:
    """Returns whether a folder is not there, or holds only killed writers' files and those that begin like others."""
    folder = Path(folder)
    if not folder.is_dir():
        return not (folder.exists() or folder.is_symlink())
    inner = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    return all(any(part.startswith((TEMPORARY, *others)) for part in path.parts) for path in inner)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Returns the value in a JSON file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged; the sentence names it.
    """
    _present("read_json", path)
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(message("read_json", str(path), "to be valid JSON", str(error), DELETE)) from error


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file on the CPU, the checksum verified if the file has one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged; the sentence names it.
    """
    return read_tensors_and_metadata(path)[0]


def read_tensors_and_metadata(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a safetensors file, as `read_tensors` does, and the texts of its header."""
    found, metadata = verified(path)
    with safetensors.safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in found}, metadata


def verified(path: str | os.PathLike[str]) -> tuple[dict[str, _safetensors.Place], dict[str, str]]:
    """Returns where the tensors of a safetensors file lie, and its texts; the checksum is verified if it has one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged; the sentence names it.
    """
    _present("read_tensors", path)
    try:
        found, metadata = _safetensors.places(path)
    except safetensors.SafetensorError as error:
        requirement = "to be a whole safetensors file"
        raise ValueError(message("read_tensors", str(path), requirement, str(error), DELETE)) from error
    expected = metadata.pop(CHECKSUM, None)
    if expected is not None and expected != (own := _safetensors.file_checksum(path, found, metadata)):
        raise ValueError(message("read_tensors", str(path), f"to have checksum {expected}", own, DELETE))
    return found, metadata


DELETE = "The file is damaged: delete it, or restore it from a copy, and run again"


def _present(function: str, path: str | os.PathLike[str]) -> None:
    if not Path(path).is_file():
        found = "a folder" if Path(path).is_dir() else "nothing there"
        raise FileNotFoundError(message(function, str(path), "to be a file", found, "Check the path"))


def _aside(path: Path) -> Path:
    return path.parent / f".old-{path.name}"


def _place(temporary: Path, path: Path) -> None:
    """Gives a file its name, unless another one has it; the temporary name ends."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links: between the look and the renaming another one may come
        if not path.exists():
            os.replace(temporary, path)
            return
    temporary.unlink()


def _sync(path: Path) -> None:
    with suppress(OSError):  # some systems cannot sync a folder
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _sentence(path: Path) -> Iterator[None]:
    """Turns an operating system error into one sentence, keeping its class and number."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:
            raise
        full, blocked = error.errno in FULL, isinstance(error, FileExistsError | NotADirectoryError)
        fix = "Free space, or choose" if full else "A part of its path is a file: choose" if blocked else "Choose"
        fix += " another folder"
        sentence = type(error)(message("write", str(path), "to be writable", error.strerror, fix))
        sentence.errno = error.errno
        raise sentence from error
