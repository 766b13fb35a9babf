"""What launching kernels needs a C compiler for is in the cache: a node without one loads it."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="needs triton (the test extra installs it)")

from emfast.compilation import launchers, precompile
from emfast.compilation.compiling import Layout
from emfast.compilation.precompile import compile_calls
from emfast.kernels import _manifest

X = Layout(torch.float32, (2, 1, 8, 8), (64, 64, 8, 1), 0)
CALL = ("residual_sum", (X, X, None, None, 1.0))
NODE = f"""
import ctypes, sys
import torch, triton
from emfast.compilation.compiling import Layout
from emfast.compilation.launchers import load_launchers

ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
X = {X!r}
load_launchers([{CALL!r}], [90])
"""


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
@pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for a driver that is there")
def test_a_node_needs_no_compiler(tmp_path):
    cache, node = tmp_path / "cache", tmp_path / "node"
    node.mkdir()
    compile_calls([CALL], cache, architectures=[90])
    stand_in = launchers.stand_in(node)
    environment = {"PATH": "", "CC": "/bin/false", "HOME": str(node), "TRITON_LIBCUDA_PATH": str(node)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)

    def status(folder):
        command = [sys.executable, "-c", NODE, str(stand_in)]
        return subprocess.run(command, env=environment | {"TRITON_CACHE_DIR": str(folder)}, check=False).returncode

    assert status(cache) == 0
    assert status(tmp_path / "another") != 0


def test_without_a_compiler_the_kernels_alone_are_made(monkeypatch, tmp_path):
    monkeypatch.setattr(launchers, "compiler", lambda: None)
    assert not launchers.build_launchers([CALL], tmp_path, architectures=[90])


@pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for a driver that is there")
def test_launchers_are_added_where_a_compiler_is(monkeypatch, tmp_path):
    built = [False, False, True, True]
    monkeypatch.setattr(precompile, "build_launchers", lambda *_, **__: built.pop(0))
    other = ("residual_sum", (X, X, X, None, 1.0))

    def launchable(calls):
        compile_calls(calls, tmp_path, architectures=[90])
        return _manifest.read(tmp_path)["launchers"]

    assert not launchable([CALL])
    assert not launchable([CALL, other])
    assert not launchable([other])  # those of the first call are still missing
    assert launchable([CALL, other])
