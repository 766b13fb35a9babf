"""Graphs: replay equals a plain call, whatever changes between the calls."""

import warnings

import pytest
import torch
from contracts import Gaussian

from emfast.diffusion import VPSchedule
from emfast.graph import Graphed, _Capture, graphed, kept
from emfast.operators import Mask
from emfast.samplers import MMPS


def test_on_a_cpu_it_is_a_plain_call():
    calls = []

    def function(x):
        calls.append(x)
        return x + 1

    x = torch.zeros(2)
    assert torch.equal(Graphed(function)(x), x + 1)
    assert calls[0] is x
    assert len(calls) == 1


def test_a_capture_sees_every_change_of_its_arguments():
    inputs = [torch.empty(2), torch.empty(2)]
    output = torch.empty(2)
    capture = _Capture(lambda: output.copy_(2 * inputs[0] + inputs[1]), inputs, output)
    x, y = torch.ones(2), torch.ones(2)
    assert capture((x, y)).tolist() == [3, 3]
    y.add_(1)  # the same tensor with other values
    assert capture((x, y)).tolist() == [4, 4]
    for expected in (10, 22):  # the output as the next argument
        assert capture((output, y)).tolist() == [expected, expected]
    assert capture((torch.zeros(2), torch.full((2,), 5.0))).tolist() == [5, 5]


def test_graphs_are_kept_inside_the_block_only():
    def function(x):
        return x

    assert graphed(function, 1) is not graphed(function, 1)
    with kept():
        first = graphed(function, function, 1)
        assert graphed(lambda x: x, function, 1) is first
        assert graphed(function, function, 2) is not first
    assert graphed(function, function, 1) is not first


@pytest.mark.parametrize("sampler", [MMPS(steps=6)])
def test_replay_equals_eager(sampler, device, monkeypatch):
    if device.type != "cuda":
        pytest.skip("needs --device cuda: elsewhere nothing is captured")
    prior, operator = Gaussian(VPSchedule.linear()), Mask(missing=0.5)
    batches = [torch.arange(4, device=device), torch.arange(7, 11, device=device)]
    y = [operator.observe(torch.randn(4, *Gaussian.shape, device=device, dtype=torch.float64), ids=b) for b in batches]

    def run():
        return [sampler(prior.denoiser, y_b, operator, ids=b, seed=1) for y_b, b in zip(y, batches, strict=True)]

    with warnings.catch_warnings(), kept():
        warnings.simplefilter("error")
        replayed = run()
    monkeypatch.setattr(Graphed, "__call__", lambda self, *tensors: self.function(*tensors))
    assert all(torch.equal(a, b) for a, b in zip(replayed, run(), strict=True))
