"""What a folder of compiled kernels is for: the versions, architectures and kernels, written by `emfast precompile`.

Triton finds nothing in a cache of another version, and compiles again without a word. Where a manifest says that the
kernels are of another version, or for another GPU, that is an error, before the first launch.
"""

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FILE = "emfast-kernels.json"
PACKAGES = ("emfast", "torch", "triton")
DECIDE = ("triton", "python", "machine", "sources")  # what Triton's keys, and what launches kernels, depend on


def here() -> dict[str, str]:
    """Returns what a manifest says of versions, of this process."""
    found = {name: _version(name) for name in PACKAGES}
    major, minor, _ = platform.python_version_tuple()
    return {**found, "python": f"{major}.{minor}", "machine": platform.machine(), "sources": _sources()}


def read(folder: Path) -> dict[str, Any] | None:
    """Returns the manifest of a folder, None if it has none.

    Raises:
        ValueError: If it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_bytes())
        if not {*DECIDE, "architectures", "calls"} <= manifest.keys():
            raise ValueError("without what it must say")
    except (ValueError, AttributeError, TypeError) as error:
        fix = "Run `emfast precompile` again"
        raise ValueError(f"kernels: expected {path} to be a manifest, got {error}. {fix}.") from error
    return dict(manifest)


def check(folder: Path, architecture: int | str | None = None) -> None:
    """Raises an error where the kernels of a folder do not fit; one without a manifest may hold anything.

    Arguments:
        folder: The folder.
        architecture: The one to launch for; None for any.
    Raises:
        RuntimeError: If they are of another version, or not for that architecture.
    """
    manifest = read(folder)
    reason = None if manifest is None else misfit(manifest, architecture)
    if reason is not None:
        fix = "Make one with `emfast precompile` of the versions here, or unset TRITON_CACHE_DIR and EMFAST_KERNELS"
        raise RuntimeError(f"kernels: expected the cache {folder} {reason}. {fix}.")


def misfit(manifest: Mapping[str, Any], architecture: int | str | None = None) -> str | None:
    """Returns "to be ..., got ..." where kernels do not fit this process, None where they do.

    Arguments:
        manifest: Theirs.
        architecture: The one to launch for; None for any.
    """
    own = here()
    for name in DECIDE:
        if manifest[name] != own[name]:
            if name == "sources":
                return f"to be of the kernels of this emfast, {own['emfast']}, got others, of {manifest['emfast']}"
            return f"to be of {name} {own[name]}, got {manifest[name]}"
    if architecture is not None and str(architecture) not in manifest["architectures"]:
        return f"to be for {_name(architecture)}, got {', '.join(map(_name, manifest['architectures']))}"
    return None


def _name(architecture: int | str) -> str:
    return f"sm_{architecture}" if str(architecture).isdecimal() else str(architecture)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


@cache
def _sources() -> str:
    """Returns a hash of all kernels, as they are written."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes a manifest, as a whole, unless it is there.

    Arguments:
        folder: Where.
        content: All that it says beside versions.
    """
    temporary, text = folder / f"{FILE}.{os.getpid()}", json.dumps({**here(), **content}, indent=1, sort_keys=True)
    if (folder / FILE).is_file() and (folder / FILE).read_text() == text:
        return
    temporary.write_text(text)
    os.replace(temporary, folder / FILE)
