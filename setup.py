"""Builds the CPU backend `emfast._C` from csrc/*.cpp; a machine without a C++ compiler installs without it."""

import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

# -fno-unswitch-loops: gcc 12 at -O3 otherwise de-vectorises the channels_last loops.
FLAGS = [] if sys.platform == "win32" else ["-O3", "-fno-unswitch-loops", "-fno-math-errno", "-ffp-contract=fast", "-fopenmp"]
LINK = [] if sys.platform == "win32" else ["-fopenmp"]

setup(
    ext_modules=[
        Pybind11Extension(
            "emfast._C",
            sorted(str(path) for path in Path("csrc").glob("*.cpp")),
            depends=sorted(str(path) for path in Path("csrc").glob("*.h")),
            cxx_std=17,
            extra_compile_args=FLAGS,
            extra_link_args=LINK,
            optional=True,
        )
    ]
)
