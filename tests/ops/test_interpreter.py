"""The op tests on the Triton backend, in processes of their own, since Triton interprets all or nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = [path for path in sorted(HERE.glob("test_*.py")) if re.search(r"def test_.*\(.*\bbackend\b", path.read_text())]
ALONE = {"test_attention.py", "test_blur.py", "test_group_norm_silu.py", "test_separable_blur.py"}  # the long ones
GROUPS = [[path] for path in FILES if path.name in ALONE] + [[path for path in FILES if path.name not in ALONE]]


@pytest.mark.parametrize("files", GROUPS, ids=[paths[0].stem if len(paths) == 1 else "the_others" for paths in GROUPS])
def test_triton_kernels_in_the_interpreter(files):
    pytest.importorskip("triton", reason="needs triton (the test extra installs it)")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this is such a process")
    command = [sys.executable, "-m", "pytest", "-k", "triton", "--backend", "triton", "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run([*command, "-n", "0", *files], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-10000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
