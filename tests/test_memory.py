"""Freed memory is kept, so that a large tensor is not mapped afresh every time."""

import subprocess
import sys

import pytest

resource = pytest.importorskip("resource")

CODE = """
import resource
import torch
from emfast._memory import keep_freed_memory

def faults():
    for _ in range(10):  # until the heap has settled
        torch.ones(1 << 24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), keep_freed_memory(), faults())
"""


def test_large_tensors_are_not_mapped_afresh():
    """In a process of its own: the heap of one that has run other tests may be in too many pieces."""
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout.split()
    if found[1] != "True":
        pytest.skip("this is not glibc")
    pages = 3 * 64 * 2**20 / resource.getpagesize()
    assert int(found[0]) > pages / 2
    assert int(found[2]) < pages / 10
