"""`import emfast` is quick: torch and nothing heavier."""

import subprocess
import sys

HEAVY = ("diffusers", "triton", "matplotlib", "rich", "jsonargparse", "torchmetrics", "accelerate", "PIL")
SECONDS = 0.2


def fresh(code):
    """Returns what a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_is_light():
    # What torch itself brings along is not ours to answer for.
    code = f"import sys, torch; old = set(sys.modules); import emfast; print(set({HEAVY}) & (set(sys.modules) - old))"
    assert fresh(code) == "set()"


def test_import_is_quick():
    code = "import time, torch; start = time.perf_counter(); import emfast; print(time.perf_counter() - start)"
    assert min(float(fresh(code)) for _ in range(2)) < SECONDS


def test_the_version():
    assert fresh("import emfast; print(emfast.__version__)").count(".") == 2
