"""Graphs: replay equals a plain call, whatever changes between the calls."""

import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import pytest
import torch
from contracts import Bare, OnDevice

from emfast.diffusion import Denoiser, VPSchedule
from emfast.graph import KEPT, WARM_UP, Graphed, _Capture, graphed, graphs
from emfast.operators import Downsample, GaussianBlur, Identity, Mask, MotionBlur
from emfast.samplers import DAPS, DPS, MMPS, DiffPIR, PiGDM, Prior, ReverseFromObservation, WarmStart
from emfast.samplers.problem import Problem, transitions


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
    with graphs() as held:
        first = graphed(function, function, 1)
        assert graphed(lambda x: (x,), function, 1) is first
        assert graphed(function, function, 2) is not first
        with graphs():  # as the E-step has it: those of the outer block are kept
            assert graphed(function, function, 1) is first
    assert graphed(function, function, 1) is not first
    with held:  # and again
        assert graphed(function, function, 1) is first
        held.clear()
        assert graphed(function, function, 1) is not first


def test_what_an_object_says_equals_is_one_key():
    def function(x):
        return (x,)

    @dataclass
    class Unhashable:
        value: int

    one = Unhashable(1)
    with graphs():
        assert graphed(function, DPS(steps=5)) is graphed(function, DPS(steps=5))
        assert graphed(function, DPS(steps=5)) is not graphed(function, DPS(steps=6))
        assert graphed(function, one) is graphed(function, one)
        assert graphed(function, one) is not graphed(function, Unhashable(1))


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

    with warnings.catch_warnings(), graphs():
        warnings.filterwarnings("error", message="Graphed")  # others are of operators that are not deterministic
        replayed = run()
    monkeypatch.setattr(Graphed, "__call__", lambda self, *tensors: self.function(*tensors))
    for ours, eager in zip(replayed, run(), strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-6, atol=1e-6)


def test_steps_from_an_earlier_reconstruction_share_the_graph_of_the_sampler(monkeypatch):
    made = []
    monkeypatch.setattr(
        "emfast.samplers.base.graphed", lambda function, *key, network: made.append(key[0]) or Graphed(function)
    )
    denoiser, y, ids = Denoiser(Tiny(), VPSchedule.linear()), torch.zeros(2, 3, 8, 8), torch.arange(2)
    sampler = DPS(steps=3)
    for _ in range(2):
        WarmStart(sampler, y, ids, noise=1.0)(denoiser, y, Mask(missing=0.5), ids=ids)
    assert made == [sampler, sampler]


@pytest.fixture
def steps(monkeypatch):
    """The `Graphed` behind each step that samplers make: on a GPU each is one capture."""
    made = []

    def call(self, *tensors):
        made.append(self)
        return self.function(*tensors)

    monkeypatch.setattr(Graphed, "__call__", call)
    return made


@pytest.mark.parametrize("held", [True, False])
def test_batch_after_batch_is_one_capture(steps, held):
    denoiser, operator, y = Denoiser(Tiny(), VPSchedule.linear()), Mask(missing=0.5), torch.zeros(2, 3, 8, 8)
    with graphs() if held else nullcontext():
        for start in (0, 2, 4):
            DPS(steps=3)(denoiser, y, operator, ids=torch.arange(start, start + 2))
    assert len(steps) == 9
    assert len(set(steps)) == (1 if held else 3)


def test_what_is_made_anew_for_every_batch_is_not_kept_for_ever():
    sampler, operators = DPS(steps=1), [Mask(missing=0.5) for _ in range(3 * KEPT)]
    with graphs() as held:
        first = graphed(print, sampler, operators[0])
        for operator in operators:
            graphed(print, sampler, operator)
            assert graphed(print, sampler, operators[0]) is first  # in use
        assert len(held.kept) == KEPT


WRITES = {
    "in place": lambda network: torch.nn.init.zeros_(network.conv.weight),
    "through data": lambda network: network.conv.weight.data.zero_(),
    "another state": lambda network: network.load_state_dict(Tiny().state_dict()),
}
CHANGES = {
    "another tensor": lambda network: setattr(network.conv.weight, "data", network.conv.weight.data.clone()),
    "another parameter": lambda network: setattr(network.conv, "bias", torch.nn.Parameter(torch.zeros(3))),
    "another dtype": lambda network: network.double(),
    "an attribute": lambda network: setattr(network.conv, "padding_mode", "circular"),
    "a hook": lambda network: network.conv.register_forward_hook(lambda *_: None),
    "a method": lambda network: setattr(network.conv, "forward", network.conv.forward),
    "another part": lambda network: setattr(network, "conv", torch.nn.Sequential(network.conv)),
    "another class": lambda network: setattr(network.conv, "__class__", type("Conv2d", (torch.nn.Conv2d,), {})),
}


FOLLOWED = {**WRITES, "its mode": lambda network: network.train(not network.training)}  # evaluation in each call


@pytest.mark.parametrize("write", FOLLOWED)
def test_weights_that_are_written_are_no_reason_to_capture_anew(steps, write):
    """A replay reads them where they lie; what is prepared from them is made anew, in place, before it."""
    network = Tiny()
    denoiser, y = Denoiser(network, VPSchedule.linear()), torch.zeros(2, 3, 8, 8)
    sampler, operator = DPS(steps=1), Mask(missing=0.5)
    with graphs():
        sampler(denoiser, y, operator)
        FOLLOWED[write](network)
        sampler(denoiser, y, operator)
    assert steps[0] is steps[1]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_network_is_captured_anew(steps, change):
    """A graph holds what was computed, and the addresses of weights."""
    network = Tiny()
    denoiser, y = Denoiser(network, VPSchedule.linear()), torch.zeros(2, 3, 8, 8)
    sampler, operator = DPS(steps=1), Mask(missing=0.5)
    with graphs() as held:
        sampler(denoiser, y, operator)
        CHANGES[change](network)
        sampler(denoiser, y, operator)
        sampler(denoiser, y, operator)
    assert steps[0] is not steps[1]
    assert steps[1] is steps[2]
    assert len(held.kept) == 1  # the one before is freed


@pytest.mark.parametrize("changed", ["operator", "denoiser"])
def test_an_operator_or_a_denoiser_that_is_set_otherwise_is_captured_anew(steps, changed):
    denoiser, operator = Denoiser(Tiny(), VPSchedule.linear()), GaussianBlur(size=3)
    sampler, y = DPS(steps=1), torch.zeros(2, 3, 8, 8)
    with graphs():
        sampler(denoiser, y, operator)
        if changed == "operator":
            operator.padding = "circular"
        else:
            denoiser.dtype = torch.bfloat16
        sampler(denoiser, y, operator)
        sampler(denoiser, y, operator)
    assert steps[0] is not steps[1]
    assert steps[1] is steps[2]


def test_a_changed_tensor_of_inference_mode_is_seen():
    static, output = torch.zeros(2), (torch.zeros(2),)
    capture = _Capture(lambda: output[0].copy_(static), [static], output)
    with torch.inference_mode():
        x = torch.ones(2)
        assert capture((x,))[0].tolist() == [1, 1]
        x.add_(1)
        assert capture((x,))[0].tolist() == [2, 2]


class Pretended:
    """A stream, or a graph, of a GPU that is not there."""

    def __init__(self, *args):
        self.replay = self.wait_stream = lambda *args: None


@pytest.fixture
def gpu(monkeypatch):
    """The part of torch.cuda that captures, without a GPU: what was asked of it."""
    asked = []

    @contextmanager
    def block(*args, **options):
        asked.append(("block", args, options))
        yield

    for name in ("Stream", "CUDAGraph", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Pretended)
    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, block)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append(("empty_cache",)))
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: asked.append(("waiting", mode)))
    return asked


def test_a_capture_is_made_on_the_stream_of_its_warm_up(gpu):
    calls = []
    capture = Graphed(lambda x: (calls.append(1), (x + 1,))[1])._capture((torch.ones(2),))
    assert capture.output[0].tolist() == [2, 2]
    assert len(calls) == WARM_UP + 1
    streams = [args[0] for kind, args, *_ in (entry for entry in gpu if entry[0] == "block") if args]
    *_, (_, _, options) = (entry for entry in gpu if entry[0] == "block")
    assert options["stream"] in streams
    assert [entry[1] for entry in gpu if entry[0] == "waiting"] == ["error", 0]


def test_a_step_that_waits_for_the_device_is_not_captured(gpu):
    """A capture that is broken off would leave torch's allocator broken: it is not begun."""
    calls = []

    def function(x):
        calls.append(x)
        if gpu[-1] == ("waiting", "error"):
            raise RuntimeError("called a synchronizing CUDA operation\nand more")
        return (x,)

    with pytest.warns(UserWarning, match="it runs without one: called a synchronizing CUDA operation$"):
        assert Graphed(function)._capture((torch.ones(2),)) is None
    assert len(calls) == WARM_UP
    assert ("empty_cache",) not in gpu
    assert gpu[-1] == ("waiting", 0)


SAMPLERS = [DPS, MMPS, PiGDM, DiffPIR, DAPS, Prior, ReverseFromObservation]
OPERATORS = {
    "missing": Mask(missing=0.5),
    "box": Mask(box=3),
    "given": Mask(mask=torch.eye(18)),
    "blur": GaussianBlur(size=5, std=1.0),
    "shake": MotionBlur(size=5),
    "large shake": MotionBlur(size=17),
    "downsample": Downsample(2),
    "identity": Identity(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_step_stays_on_the_device_and_asks_for_no_value(kind, name, dtype):
    """A graph cannot hold a step that waits for the device."""
    denoiser, sampler, operator = Bare(Tiny(), VPSchedule.linear()), kind(steps=5), OPERATORS[name]
    table = transitions(denoiser.schedule, sampler.times(denoiser.schedule, 0.1), sampler.eta, sampler.zeta)
    ids, shape = torch.arange(4, device="meta"), (3, 18, 18)
    parameters = operator.parameters(ids, shape)
    assert all(value.is_meta for value in parameters.values())
    denoiser.to("meta", dtype)
    y = operator.apply(torch.empty(4, *shape, dtype=dtype, device="meta"), parameters)
    x, k = torch.empty(4, *shape, dtype=dtype, device="meta"), torch.zeros((), dtype=torch.int64, device="meta")
    problem = Problem(denoiser, y, operator, parameters, 0.1, ids, 0, table.to("meta"))
    with torch.no_grad():
        sampler.step(problem, x, x, k)  # brings the tables of the schedule to the device
        with OnDevice():
            x_s, x_0 = sampler.step(problem, x, x, k)
    assert (x_s.shape, x_s.dtype, x_0.shape, x_0.dtype) == (x.shape, dtype, x.shape, dtype)
