import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_triton_kernels_in_the_interpreter():
    """Runs every op test on the Triton backend, in a process of its own, since Triton interprets all or nothing."""
    pytest.importorskip("triton", reason="needs triton (the test extra installs it)")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this is the process of its own")
    command = [sys.executable, "-m", "pytest", "-x", "-k", "triton", "--backend", "triton", "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run([*command, Path(__file__).parent], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-10000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
