"""The build of the CPU backend: ninja compiles what has changed, and nothing else."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULE = """
#include <Python.h>
#include "own.h"
int answer();
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, OWN, nullptr};
PyMODINIT_FUNC PyInit__C() { return answer() ? PyModule_Create(&module) : nullptr; }
"""
# As pip does for an editable installation, each time with another folder for temporary files.
BUILD = "from setuptools import build_meta; build_meta.build_editable('wheel')"


@pytest.fixture
def project(tmp_path):
    """The project, in a folder with a space, with an extension of two small files; the first includes a header."""
    pytest.importorskip("pybind11")
    project = tmp_path / "a project"
    project.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    files = {
        "csrc/module.cpp": MODULE,
        "csrc/own.h": "#define OWN -1\n",
        "csrc/other.cpp": "int answer() { return 1; }",
    }
    for name, text in {**files, "emfast/__init__.py": "__version__ = '0'", "wheel/.keep": ""}.items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(text)
    return project


def build(project, **environment):
    """Builds, and returns the names of the files that were compiled and whether the extension was linked."""
    (extension,) = [*project.glob("emfast/_C*"), None][:1]
    before = extension and extension.stat().st_mtime_ns
    done = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=project, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (extension,) = project.glob("emfast/_C*")
    compiled = [Path(line.split()[-1]).stem for line in done.stdout.splitlines() if "] compile csrc" in line]
    return sorted(compiled), extension.stat().st_mtime_ns != before


@pytest.mark.skipif(not shutil.which("ninja"), reason="needs ninja")
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_what_has_changed_is_compiled(project):
    assert build(project) == (["module", "other"], True)
    (project / "csrc/other.cpp").write_text("int answer() { return 2; }")
    assert build(project) == (["other"], True)
    (project / "csrc/own.h").write_text("#define OWN 0\n")
    assert build(project) == (["module"], True)


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_machine_without_ninja_builds(project, tmp_path):
    folders = [folder for folder in os.environ["PATH"].split(os.pathsep) if not Path(folder, "ninja").exists()]
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("g++", "gcc", "as", "ld", "collect2"):
        found = shutil.which(tool)
        if found:
            (tools / tool).symlink_to(found)
    assert build(project, PATH=os.pathsep.join([*folders, str(tools)])) == ([], True)


def test_a_wheel_is_tried_with_the_packages_that_the_environment_names():
    tried = runpy.run_path(str(ROOT / "scripts" / "try_wheel.py"))
    environment = {
        "PIP_INDEX_URL": "https://mirror",
        "HTTPS_PROXY": "p",
        "http_proxy": "q",
        "CC": "gcc",
        "PATH": "/bin",
    }
    assert tried["kept"](environment) == {"PIP_INDEX_URL": "https://mirror", "HTTPS_PROXY": "p", "http_proxy": "q"}
