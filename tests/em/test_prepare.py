"""The network as a run's device wants it."""

import pytest
import torch
from torch import nn

from emfast.diffusion import Denoiser, VPSchedule
from emfast.em.device import prepare, resolve_device


@pytest.mark.parametrize(("device", "last"), [("cuda", True), ("cpu", False)])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_network_left_as_it_is_has_channels_innermost_where_tensor_cores_read_them(
    device, precision, last, monkeypatch
):
    monkeypatch.setattr(Denoiser, "to", lambda self, device: self)  # there may be no GPU
    denoiser = prepare(Denoiser(nn.Conv2d(4, 8, 3), VPSchedule.linear()), torch.device(device), precision, fast=False)
    weight = denoiser.network.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == (last and precision == "bfloat16")
    assert weight.dtype == torch.float32


@pytest.mark.parametrize(("seen", "rank", "expected"), [(1, "3", "cuda:0"), (4, "3", "cuda:3"), (4, None, "cuda:0")])
def test_the_device_of_a_process_is_that_of_its_rank_or_the_only_one_it_sees(monkeypatch, seen, rank, expected):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: asked.append(str(device)) or torch.ones(1))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert str(resolve_device("auto")) == expected
    assert asked == [expected]
