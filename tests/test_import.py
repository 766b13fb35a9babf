"""`import emfast` is quick, and everything public is reached from it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import emfast

HEAVY = ("diffusers", "triton", "matplotlib", "rich", "torchmetrics", "accelerate", "PIL", "yaml")
SECONDS = 0.2
FOLDERS = (
    "adapters",
    "compilation",
    "config",
    "data",
    "diffusion",
    "em",
    "evaluation",
    "nn",
    "operators",
    "ops",
    "random",
    "reporting",
    "samplers",
)
NAMES = ("Config", "accelerate", "backend", "graphs", "report", "restore", "train")


def fresh(code):
    """Returns what a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_is_light():
    code = (
        "import sys; import emfast; print(sorted(name for name in sys.modules if name.startswith(('emfast', 'torch'))))"
    )
    assert fresh(code) == "['emfast']"


@pytest.mark.parametrize("names", [FOLDERS, NAMES])
def test_every_public_name_alone(names):
    """Each in a process that has imported nothing else: what is there already may hide that a name is not."""
    code = f"""
import os, sys, torch
old = set(sys.modules)
for name in {names}:
    if os.fork() == 0:
        import emfast
        value = getattr(emfast, name)
        heavy = set({HEAVY}) & (set(sys.modules) - old)
        print(name, getattr(value, "__name__", "").split(".")[-1], *heavy, flush=True)
        os._exit(0)
    os.wait()
"""
    assert [line.split() for line in fresh(code).splitlines()] == [[name, name] for name in names]


def test_the_names_are_listed():
    assert set(dir(emfast)) >= {*FOLDERS, *NAMES, "__version__"}
    with pytest.raises(AttributeError, match="module 'emfast' has no attribute 'trian'"):
        emfast.trian  # noqa: B018


def test_import_is_quick():
    code = "import time, torch; start = time.perf_counter(); import emfast; print(time.perf_counter() - start)"
    assert min(float(fresh(code)) for _ in range(2)) < SECONDS


def test_the_version():
    assert fresh("import emfast; print(emfast.__version__)").count(".") == 2


def test_type_checkers_see_the_names():
    """What stands under TYPE_CHECKING, which mypy follows, is what is there, and no more."""
    tree = ast.parse(Path(emfast.__file__).read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = [alias.asname for node in blocks[0].body for alias in node.names]
    assert sorted(seen) == sorted((*FOLDERS, *NAMES))
    assert "__getattr__" not in [getattr(node, "name", "") for node in tree.body]  # it would have every name exist
