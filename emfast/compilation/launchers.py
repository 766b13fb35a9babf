"""What Triton builds with a C compiler when it first launches on a GPU, built beforehand.

That is a helper of its driver, and in Triton 3.6 a small module for every signature of a kernel. They are linked with
NVIDIA's driver, which may not be here: a library of its name stands in for it, and nothing of it is called.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from emfast.compilation.compiling import Call, compiling, launch

DRIVER = "libcuda.so.1"


def build_launchers(calls: Sequence[Call], folder: Path, *, architectures: Sequence[int]) -> bool:
    """Adds to a Triton cache what launching its kernels needs a C compiler for; one process builds, once.

    Arguments:
        calls: The op calls whose kernels are in the cache.
        folder: The cache.
        architectures: Those the kernels were compiled for.

    Returns:
        Whether it could: there is a C compiler here.
    """
    if compiler() is None:
        return False
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # no other code is to find the stand-in
        pool.submit(_build, list(calls), folder, list(architectures)).result()
    return True


def compiler() -> str | None:
    """Returns the C compiler that Triton would take, or None if there is none."""
    named = os.environ.get("CC")
    return shutil.which(named) if named else shutil.which("gcc") or shutil.which("clang")


def _build(calls: Sequence[Call], folder: Path, architectures: Sequence[int]) -> None:
    import triton
    from triton.runtime import build

    with tempfile.TemporaryDirectory() as scratch, triton.knobs.cache.scope(), triton.knobs.nvidia.scope():
        ctypes.CDLL(str(stand_in(Path(scratch))), mode=ctypes.RTLD_GLOBAL)
        triton.knobs.cache.dir, triton.knobs.nvidia.libcuda_path = str(folder), scratch
        for key in _platform_keys():
            build.platform_key = lambda key=key: key
            load_launchers(calls, architectures)


def _platform_keys() -> list[str]:
    """Returns what Triton may call this kind of machine: the last part is missing where the command `file` is not."""
    return [",".join((platform.machine(), platform.system(), platform.architecture()[0], part)) for part in ("ELF", "")]


def stand_in(folder: Path) -> Path:
    """Writes a library of the driver's name, all of whose functions do nothing, and returns its path.

    Arguments:
        folder: Where.
    """
    from triton.backends.nvidia import driver

    sources = (Path(driver.__file__), Path(driver.__file__).with_name("driver.c"))
    names = {name for source in sources for name in re.findall(r"\bcu[A-Z]\w+", source.read_text())}
    code, path = folder / "driver.c", folder / DRIVER
    code.write_text("".join(f"void {name}(void) {{}}\n" for name in sorted(names)))
    command = [str(compiler()), "-shared", "-fPIC", "-w", f"-Wl,-soname,{DRIVER}", str(code), "-o", str(path)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return path


def load_launchers(calls: Sequence[Call], architectures: Sequence[int]) -> None:
    """Loads the modules that launching some calls needs out of Triton's cache, or builds them.

    Arguments:
        calls: The calls.
        architectures: The compute capabilities.
    """
    import triton
    from triton.backends.nvidia import driver

    utils = driver.CudaUtils()
    for arch in architectures:
        for call in calls:
            with compiling(arch) as done:
                launch(*call)
                triton.runtime.driver.active.utils = utils
                for kernel in done.kernels:
                    driver.CudaLauncher(kernel.src, kernel.metadata)
