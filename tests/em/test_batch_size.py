"""The batch size by throughput."""

import pytest
import torch
from test_e_step import Model, observations

from emfast.em import batch_size
from emfast.em.batch_size import choose_batch_size
from emfast.samplers import DPS, MMPS


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({16: 1.0, 32: 1.2, 64: 1.9, 128: 3.9, 256: 3.9}, 64),  # 128 is no faster: the search ends
        ({16: 1.0, 32: 2.0}, 16),
        ({16: 16.0, 32: 16.0, 64: 16.0, 128: 16.0, 256: 16.0}, 256),
    ],
)
def test_the_fastest_wins(monkeypatch, seconds, best):
    monkeypatch.setattr(batch_size, "step_seconds", lambda sampler, denoiser, data, ids: (seconds[len(ids)], 1))
    assert choose_batch_size(DPS(), Model(), None, torch.arange(1000)) == best


@pytest.mark.parametrize("sampler", [MMPS(steps=4), MMPS(steps=1)])
def test_few_observations_are_one_batch(sampler):
    assert choose_batch_size(sampler, Model(), observations(), torch.arange(5)) == 5
    assert choose_batch_size(sampler, Model(), observations(), torch.arange(10).repeat(2)) == 16


@pytest.mark.parametrize("fitting", [0, 8])
def test_a_gpu_too_small_for_the_trial_begins_with_its_first_size(monkeypatch, fitting):
    def step_seconds(sampler, denoiser, data, ids):
        if len(ids) > fitting:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(batch_size, "step_seconds", step_seconds)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    for asked in ("memory_reserved", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, asked, lambda device: 0)
    assert batch_size._largest(DPS(), Model(), None, torch.arange(1000)) == 8
