"""Builds the CPU backend `emfast._C` from csrc/*.cpp; a machine without a C++ compiler installs without it."""

import sys
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

# -fno-unswitch-loops: gcc 12 at -O3 otherwise de-vectorises the channels_last loops. -ffp-contract=fast: a * b + c in
# one instruction; NaN, infinity and the order of operations stay as written. -Wno-psabi: vectors never cross a call.
GNU = ["-O3", "-fno-unswitch-loops", "-fno-math-errno", "-ffp-contract=fast", "-fopenmp", "-Wno-psabi"]
POSIX = sys.platform != "win32"

ParallelCompile().install()
setup(
    ext_modules=[
        Pybind11Extension(
            "emfast._C",
            sorted(str(path) for path in Path("csrc").glob("*.cpp")),
            depends=sorted(str(path) for path in Path("csrc").glob("*.h")),
            cxx_std=17,
            extra_compile_args=GNU if POSIX else [],
            extra_link_args=["-fopenmp"] if POSIX else [],
            optional=True,
        )
    ]
)
