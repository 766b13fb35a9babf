"""Graphs: replay equals a plain call, whatever changes between the calls."""

import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from emfast.diffusion import Denoiser, VPSchedule
from emfast.graph import Graphed, _Capture, graphed, kept
from emfast.operators import Downsample, GaussianBlur, Identity, Mask, MotionBlur
from emfast.samplers import DAPS, DPS, MMPS, DiffPIR, PiGDM, ReverseFromObservation, WarmStart
from emfast.samplers.base import Problem, transitions


def test_on_a_cpu_it_is_a_plain_call():
    calls = []

    def function(x):
        calls.append(x)
        return (x + 1,)

    x = torch.zeros(2)
    assert torch.equal(Graphed(function)(x)[0], x + 1)
    assert calls[0] is x
    assert len(calls) == 1


def test_a_capture_sees_every_change_of_its_arguments():
    inputs = [torch.empty(2), torch.empty(2)]
    output = (torch.empty(2),)
    capture = _Capture(lambda: output[0].copy_(2 * inputs[0] + inputs[1]), inputs, output)

    def run(*tensors):
        return capture(tensors)[0].tolist()

    x, y = torch.ones(2), torch.ones(2)
    assert run(x, y) == [3, 3]
    y.add_(1)  # the same tensor with other values
    assert run(x, y) == [4, 4]
    for expected in (10, 22):  # the output as the next argument
        assert run(output[0], y) == [expected, expected]
    assert run(torch.zeros(2), torch.full((2,), 5.0)) == [5, 5]


def test_graphs_are_kept_inside_the_block_only():
    def function(x):
        return (x,)

    assert graphed(function, 1) is not graphed(function, 1)
    with kept():
        first = graphed(function, function, 1)
        assert graphed(lambda x: (x,), function, 1) is first
        assert graphed(function, function, 2) is not first
    assert graphed(function, function, 1) is not first


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, t):
        return self.conv(x).tanh() * (1 + t / 1000).reshape(-1, 1, 1, 1)


EVERY = pytest.mark.parametrize(
    ("sampler", "operator"),
    [
        (DPS(steps=5), Mask(missing=0.5)),
        (DPS(steps=5), Mask(mask=torch.eye(8))),
        (MMPS(steps=5), GaussianBlur(size=5, std=1.0)),
        (PiGDM(steps=5), MotionBlur(size=5)),
        (DiffPIR(steps=5), Downsample(2)),
        (DAPS(steps=5), Mask(box=3)),
        (ReverseFromObservation(steps=5), Identity()),
    ],
)


@EVERY
def test_replay_equals_eager(sampler, operator, device, monkeypatch):
    if device.type != "cuda":
        pytest.skip("needs --device cuda: elsewhere nothing is captured")
    torch.manual_seed(0)
    denoiser = Denoiser(Tiny().to(device), VPSchedule.linear())
    batches = [torch.arange(4, device=device), torch.arange(7, 11, device=device)]
    y = [operator.observe(torch.randn(4, 3, 8, 8, device=device), 0.1, ids=ids) for ids in batches]

    def run():
        pairs = zip(y, batches, strict=True)
        return [sampler(denoiser, part, operator, sigma=0.1, ids=ids, seed=1) for part, ids in pairs]

    with warnings.catch_warnings(), kept():
        warnings.filterwarnings("error", message="Graphed")  # others are of operators that are not deterministic
        replayed = run()
    monkeypatch.setattr(Graphed, "__call__", lambda self, *tensors: self.function(*tensors))
    for ours, eager in zip(replayed, run(), strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-6, atol=1e-6)


def test_steps_from_an_earlier_reconstruction_share_the_graph_of_the_sampler(monkeypatch):
    made = []
    monkeypatch.setattr("emfast.samplers.base.graphed", lambda function, *key: made.append(key[0]) or Graphed(function))
    denoiser, y, ids = Denoiser(Tiny(), VPSchedule.linear()), torch.zeros(2, 3, 8, 8), torch.arange(2)
    sampler = DPS(steps=3)
    for _ in range(2):
        WarmStart(sampler, y, ids, noise=1.0)(denoiser, y, Mask(missing=0.5), ids=ids)
    assert made == [sampler, sampler]


@EVERY
def test_a_step_asks_for_no_value(sampler, operator):
    """A graph cannot hold a step that waits for the device; on fake tensors there is no value to ask for."""
    denoiser, ids = Denoiser(Tiny(), VPSchedule.linear()), torch.arange(4)
    table = transitions(denoiser.schedule, sampler.times(denoiser.schedule, 0.1), sampler.eta, sampler.zeta)
    parameters = operator.parameters(ids, (3, 8, 8))
    y = operator.apply(torch.zeros(4, 3, 8, 8), parameters)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        x, k, y = torch.empty(4, 3, 8, 8), torch.zeros((), dtype=torch.int64), torch.empty_like(y)
        problem = Problem(denoiser, y, operator, parameters, 0.1, ids, 0, table)
        assert sampler.step(problem, x, x, k)[0].shape == x.shape
