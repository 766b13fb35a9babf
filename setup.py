"""Builds the CPU backend `emfast._C` from csrc/*.cpp; a machine without a C++ compiler installs without it.

Ninja compiles, in parallel, what has changed since the last build and nothing else. pip brings it (pyproject asks for
it); where it is missing, without build isolation or on Windows, every build compiles every file.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from copy import copy
from pathlib import Path

import pybind11
from pybind11.setup_helpers import ParallelCompile
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# -fno-unswitch-loops: gcc 12 at -O3 otherwise de-vectorises the channels_last loops. -ffp-contract=fast: a * b + c in
# one instruction; NaN, infinity and the order of operations stay as written. -Wno-psabi: vectors never cross a call.
GNU = ["-std=c++17", "-fvisibility=hidden", "-g0", "-O3", "-fno-unswitch-loops", "-fno-math-errno"]
GNU += ["-ffp-contract=fast", "-fopenmp", "-Wno-psabi"]
MICROSOFT = ["/std:c++17", "/EHsc", "/bigobj"]
POSIX = sys.platform != "win32"


def escaped(path: str) -> str:
    """Returns a path as ninja's files have it."""
    return re.sub(r"[$ :]", r"$\g<0>", path)


class BuildWithNinja(build_ext):
    """Builds an extension whose objects ninja compiles."""

    def build_extension(self, extension: Extension) -> None:
        """Compiles and links one extension."""
        if not (POSIX and shutil.which("ninja")):
            ParallelCompile().install()
            super().build_extension(extension)
            return
        linked = copy(extension)
        linked.sources, linked.extra_objects = [], self._compile(extension)
        linked.depends = linked.extra_objects
        super().build_extension(linked)

    def _compile(self, extension: Extension) -> list[str]:
        """Returns the object files of an extension, compiled where they were out of date."""
        # For an editable installation pip gives another build_temp each time.
        folder = Path("build/editable" if self.editable_mode else self.build_temp).absolute()
        compiler = [
            *getattr(self.compiler, "compiler_so_cxx", self.compiler.compiler_so),
            *extension.extra_compile_args,
        ]
        flags = shlex.join([*compiler, f"-I{sysconfig.get_path('include')}"]).replace("$", "$$")
        objects = {source: str(folder / source) + ".o" for source in extension.sources}
        lines = [
            f"builddir = {escaped(str(folder))}",  # where ninja keeps what it knows of headers
            "rule compile",
            f"  command = {flags} -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = compile $in",
            *(f"build {escaped(target)}: compile {escaped(source)}" for source, target in objects.items()),
        ]
        folder.mkdir(parents=True, exist_ok=True)
        rules = folder / f"{extension.name}.ninja"
        rules.write_text("\n".join([*lines, ""]))
        # pip keeps pybind11 in another folder each time as well: in the command it would compile everything anew.
        path = os.pathsep.join(filter(None, (pybind11.get_include(), os.environ.get("CPLUS_INCLUDE_PATH"))))
        done = subprocess.run(["ninja", "-f", str(rules)], env=os.environ | {"CPLUS_INCLUDE_PATH": path})
        if done.returncode:
            raise CompileError(f"ninja ended with {done.returncode}")
        return list(objects.values())


setup(
    cmdclass={"build_ext": BuildWithNinja},
    ext_modules=[
        Extension(
            "emfast._C",
            sorted(str(path) for path in Path("csrc").glob("*.cpp")),
            depends=sorted(str(path) for path in Path("csrc").glob("*.h")),
            include_dirs=[pybind11.get_include()],
            extra_compile_args=GNU if POSIX else MICROSOFT,
            extra_link_args=["-fopenmp"] if POSIX else [],
            language="c++",
            optional=True,
        )
    ],
)
