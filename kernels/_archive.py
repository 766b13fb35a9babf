"""A folder of compiled kernels as one file, unpacked on a node's own disk before the first kernel is launched there.

A cache has thousands of small files, each of which every process of a job would read from a shared file system. Name
the file in EMFAST_KERNELS: the first process of a node unpacks it, all others find the folder.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ._cache import NOTE, relocate, settle
from ._manifest import check

VARIABLE = "EMFAST_KERNELS"
LIST = "emfast-files.json"  # the first file of an archive: the checksums of all others


def folder() -> str:
    """Returns the cache that Triton is to use: that of the archive in EMFAST_KERNELS, or TRITON_CACHE_DIR.

    Raises:
        RuntimeError: If the archive is not there, damaged, or cannot be unpacked.
    """
    archive = os.environ.get(VARIABLE)
    if archive:
        os.environ["TRITON_CACHE_DIR"] = str(unpacked(archive))
    return os.environ.get("TRITON_CACHE_DIR", "")


def pack(cache_folder: Path, file: Any) -> None:
    """Writes all files of a cache to an open file: the same bytes for the same kernels.

    Arguments:
        cache_folder: The cache.
        file: A binary file, open for writing.
    """
    paths = sorted(path for path in cache_folder.rglob("*") if path.is_file() and path.name != NOTE)
    names = {path.relative_to(cache_folder).as_posix(): path for path in paths}
    sums = json.dumps({name: zlib.crc32(path.read_bytes()) for name, path in names.items()}).encode()
    with tarfile.open(fileobj=file, mode="w") as archive:
        _add(archive, LIST, sums)
        _add(archive, NOTE, json.dumps(str(cache_folder.resolve())).encode())  # so that paths are written anew
        for name, path in names.items():
            _add(archive, name, path.read_bytes())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o755 if name.endswith(".so") else 0o644
    archive.addfile(entry, io.BytesIO(content))


def _read(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(entry)  # None for what is no file
    return b"" if file is None else file.read()


def target(archive: str) -> Path:
    """Returns where an archive is, or would be, unpacked on this machine.

    Raises:
        RuntimeError: If it is none.
    """
    try:
        with tarfile.open(archive, "r:") as tar:
            first = tar.next()
            content = _read(tar, first) if first is not None and first.name == LIST else b""
    except (OSError, tarfile.TarError, EOFError) as error:
        raise _error(archive, str(error)) from error
    if not content:
        raise _error(archive, "another content")
    user = os.getuid() if hasattr(os, "getuid") else 0
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    return Path(tempfile.gettempdir()) / f"emfast-kernels-{user}-{digest}"


@cache
def unpacked(archive: str) -> Path:
    """Returns the folder of an archive's kernels on this machine, which is there whole or not at all.

    Several processes may do this at once: each unpacks beside it, and the first to finish gives the folder its name.

    Arguments:
        archive: The file.
    Raises:
        RuntimeError: If it is not there, damaged, or cannot be unpacked; or the folder is somebody else's.
    """
    place = target(archive)
    try:
        if not place.exists():
            _unpack(archive, place)
        if hasattr(os, "getuid") and place.stat().st_uid != os.getuid():
            raise _error(archive, f"the folder {place} of another user")
    except (OSError, tarfile.TarError, EOFError, ValueError, KeyError) as error:
        raise _error(archive, str(error)) from error
    return place


def _unpack(archive: str, place: Path) -> None:
    """Unpacks an archive; every file is compared with its checksum."""
    beside = Path(tempfile.mkdtemp(prefix=f"{place.name}-", dir=place.parent))  # of this user alone
    try:
        sums: dict[str, int] = {}
        found = set()
        with tarfile.open(archive, "r:") as tar:
            for entry in tar:
                content = _read(tar, entry)
                if entry.name == LIST:
                    sums = json.loads(content)
                    continue
                if entry.name != NOTE and zlib.crc32(content) != sums[entry.name]:
                    raise ValueError(f"a damaged {entry.name}")
                path = beside / entry.name
                if not entry.isfile() or beside not in path.resolve().parents:
                    raise ValueError(f"the entry {entry.name}")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                path.chmod(entry.mode)
                found.add(entry.name)
        if missing := sums.keys() - found:
            raise ValueError(f"no {min(missing)}")
        relocate(beside, place)
        try:
            os.rename(beside, place)
        except OSError:
            if not place.is_dir():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _error(archive: str, found: str) -> RuntimeError:
    fix = f"Copy it again, make it with `emfast precompile --archive FILE`, or unset {VARIABLE}"
    return RuntimeError(f"kernels: expected {archive} to be an archive of kernels, got {found}. {fix}.")


def architecture() -> int | None:
    """Returns the compute capability of the GPU that is here, None without one."""
    if not torch.cuda.is_available() or torch.version.hip:
        return None
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


@cache
def settled() -> None:
    """Makes the cache ready for the first launch: unpacked, its paths as they are here, and of what is here."""
    where = folder()
    if where:
        check(Path(where), architecture())
    settle(where)
