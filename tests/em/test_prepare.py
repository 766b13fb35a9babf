"""The network as a run's device wants it."""

import pytest
import torch
from torch import nn

from emfast.diffusion import Denoiser, VPSchedule
from emfast.em.device import prepare


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
