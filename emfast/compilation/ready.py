"""Whether a machine has all that a job needs: what would compile, download or write there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from emfast._library import extension, extension_error, triton_error
from emfast.compilation.launchers import compiler


class Finding(NamedTuple):
    """One line of `emfast info --check`."""

    subject: str
    text: str
    good: bool = True  # nothing compiles, nothing is loaded from elsewhere, nothing is written beside results


def findings(model: str | os.PathLike[str] | None = None) -> list[Finding]:
    """Returns what would happen on this machine before a job begins its work.

    Arguments:
        model: The folder of the model to run; None for no kernel in particular.
    Raises:
        ValueError: If it holds no model.
    """
    from emfast.kernels._archive import architecture

    return [_extension(), *kernels(model, architecture()), Finding("downloads", "nothing, ever"), *_writes()]


def _extension() -> Finding:
    error = extension_error()
    text = f"{error}; plain torch computes in its place" if error else f"compiled, runs {extension().instruction_set()}"
    return Finding("CPU", text)


def kernels(model: str | os.PathLike[str] | None, architecture: int | None) -> Iterator[Finding]:
    """Yields what would be compiled or unpacked for the GPU.

    Arguments:
        model: The folder of the model, or None.
        architecture: The compute capability of the GPU; None without one.
    """
    from emfast.kernels import _archive, _manifest

    folder, archive = os.environ.get("TRITON_CACHE_DIR", ""), os.environ.get(_archive.VARIABLE)
    if archive:
        place = _archive.target(archive)
        folder = str(place)
        if not place.exists():
            yield Finding("kernels", f"{archive} would be unpacked to {place}, once", good=False)
            return
    manifest = _manifest.read(Path(folder)) if folder else None
    reason = None if manifest is None else _manifest.misfit(manifest, architecture)
    if reason is not None:
        yield Finding("kernels", f"{folder} is refused: expected it {reason}", good=False)
    elif architecture is None:
        yield Finding("kernels", "no GPU: none are compiled")
    elif triton_error():
        yield Finding("kernels", f"{triton_error()}: plain torch computes in their place")
    elif manifest is None:
        where = folder or Path.home() / ".triton" / "cache"
        by = "and no C compiler is here to launch them" if compiler() is None else "at their first use"
        yield Finding("kernels", f"would be compiled {by}, and written to {where}: emfast precompile", good=False)
    else:
        missing = 0 if model is None else len(_calls(model) - set(manifest["calls"][str(architecture)]))
        if missing:
            yield Finding("kernels", f"{missing} calls of the model have no kernel in {folder}", good=False)
        elif not manifest["launchers"]:
            text = f"{folder} was made without a C compiler: what launches its kernels would be built"
            yield Finding("kernels", text, good=False)
        else:
            count = sum(manifest["kernels"].values())
            yield Finding("kernels", f"{count} for sm_{architecture} in {folder}: nothing compiles")


def _calls(model: str | os.PathLike[str]) -> set[str]:
    """Returns what stands in a manifest for the calls of a model, as it computes on a GPU."""
    from emfast.adapters import accelerate
    from emfast.compilation.precompile import BATCHES, digest, trace
    from emfast.em import load_model
    from emfast.em.device import resolve_precision

    denoiser, shape = load_model(model)
    dtype = resolve_precision("auto", torch.device("cuda")) if torch.cuda.is_available() else torch.bfloat16
    if dtype == torch.bfloat16:  # what is measured to be faster there
        accelerate(denoiser.network, dtype=dtype)
    return {digest(call) for batch in BATCHES for call in trace(denoiser, shape, batch)}


def _writes() -> Iterator[Finding]:
    """Yields what is written beside the results."""
    folder = Path(tempfile.gettempdir())
    yield Finding("temporary", f"in {folder} (TMPDIR): data that is compressed or cut, while it is used")
    if find_spec("matplotlib") is not None:
        import matplotlib

        cache = Path(matplotlib.get_cachedir())
        there = any(cache.glob("fontlist-*.json"))
        text = f"of matplotlib in {cache}" if there else f"matplotlib would write its list of fonts to {cache}"
        yield Finding("fonts", text, good=there)
