"""Freed memory is kept, so that a large tensor is not mapped afresh every time."""

import pytest
import torch

from emfast._memory import keep_freed_memory

resource = pytest.importorskip("resource")


def faults():
    """Page faults of making and freeing 64 MB, after the heap has settled."""
    for _ in range(10):
        torch.ones(1 << 24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_large_tensors_are_not_mapped_afresh():
    if not keep_freed_memory():
        pytest.skip("this is not glibc")
    try:
        assert faults() < 3 * 64 * 2**20 / resource.getpagesize() / 10
    finally:
        keep_freed_memory(False)
