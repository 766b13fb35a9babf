"""The denoiser around every kind of network that users bring."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from emfast.diffusion import Denoiser, EDMSchedule, FlowSchedule, VPSchedule
from emfast.operators import Identity
from emfast.samplers import DPS, MMPS, Prior, ReverseFromObservation

X_0 = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NOISE = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Oracle(nn.Module):
    """A network that knows the answer, in each parametrisation and each style of output."""

    def __init__(self, kind, style="tensor", schedule=None):
        super().__init__()
        self.kind, self.style, self.schedule = kind, style, schedule

    def forward(self, x, time):
        assert time.shape == (len(x),)
        t = time.double().reshape(-1, 1, 1, 1)
        if self.kind == "edm":
            sigma = torch.exp(4 * t)
            norm = (sigma**2 + 0.25).sqrt()
            output = (X_0 - (0.5 / norm) ** 2 * (x * norm)) * norm / (sigma * 0.5)
        else:
            alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
            output = {"eps": NOISE, "x0": X_0, "v": alpha * NOISE - sigma * X_0, "flow": NOISE - X_0}[self.kind]
        if self.style == "learned variance":
            output = torch.cat((output, torch.full_like(output, 7.0)), 1)
        return {"diffusers": SimpleNamespace(sample=output), "tuple": (output,)}.get(self.style, output)


@pytest.mark.parametrize("style", ["tensor", "tuple", "diffusers", "learned variance"])
@pytest.mark.parametrize("schedule", [VPSchedule.linear(), FlowSchedule()])
@pytest.mark.parametrize("kind", ["eps", "v", "x0", "flow", "edm"])
def test_recovers_the_clean_image(kind, style, schedule):
    schedule = EDMSchedule() if kind == "edm" else schedule
    denoiser = Denoiser(Oracle(kind, style, schedule), schedule, kind)
    t = torch.tensor([0.01, 0.5, 3.0, 10.0]) if kind == "edm" else torch.tensor([0, 10, 500, 900])
    shaped = t.reshape(-1, 1, 1, 1)
    x_t = schedule.alpha(shaped) * X_0 + schedule.sigma(shaped) * NOISE
    # t reaches the network in float32; EDM amplifies its rounding by exp
    torch.testing.assert_close(denoiser(x_t, t), X_0, rtol=0, atol=1e-5 if kind == "edm" else 1e-9)
    assert denoiser.loss(X_0, t, NOISE).shape == (4,)
    assert float(denoiser.loss(X_0, t, NOISE).max()) < 1e-9


def test_one_time_for_all_images():
    denoiser = Denoiser(Oracle("eps", schedule=VPSchedule.linear()), VPSchedule.linear())
    for t in (500, 500.0, torch.tensor(500), torch.tensor([500])):
        assert torch.equal(denoiser(X_0, t), denoiser(X_0, torch.full((4,), 500)))


@pytest.mark.parametrize(("theirs", "ours"), [("epsilon", "eps"), ("v_prediction", "v"), ("sample", "x0")])
def test_prediction_of_a_diffusers_scheduler(theirs, ours):
    assert Denoiser(nn.Identity(), DDPMScheduler(prediction_type=theirs)).prediction == ours


def test_loss_is_the_error_of_the_noise():
    class Zero(nn.Module):
        def forward(self, x, time):
            return torch.zeros_like(x)

    loss = Denoiser(Zero(), VPSchedule.linear()).loss(X_0, torch.tensor([3, 4, 5, 6]), NOISE)
    torch.testing.assert_close(loss, NOISE.square().flatten(1).mean(1))


def test_half_precision_network_and_autocast():
    class Probe(nn.Conv2d):
        def forward(self, x, time):
            self.seen = super().forward(x).dtype
            return torch.zeros_like(x)

    x = torch.rand(1, 2, 4, 4)
    for network, dtype in ((Probe(2, 2, 1).bfloat16(), None), (Probe(2, 2, 1), torch.bfloat16)):
        denoiser = Denoiser(network, VPSchedule.linear(), dtype=dtype)
        assert denoiser(x, 5).dtype == torch.float32
        assert network.seen == torch.bfloat16


@pytest.mark.parametrize("sigma_data", [0.25, 1.0])
def test_sigma_data_is_an_argument(sigma_data):
    """The raw network of data N(0, sigma_data^2) is zero: EDM's preconditioning alone is its posterior mean."""
    denoiser = Denoiser(lambda x, time: 0 * x, EDMSchedule(), "edm", sigma_data=sigma_data)
    sigma = torch.tensor([0.01, 0.5, 3.0, 10.0]).reshape(-1, 1, 1, 1)
    expected = sigma_data**2 / (sigma_data**2 + sigma**2) * X_0
    torch.testing.assert_close(denoiser(X_0, sigma.flatten()), expected)


@pytest.mark.parametrize("noise", [0.05, 0.5, 5.0])
def test_v_is_edms_preconditioning_for_data_of_unit_deviation(noise):
    network, schedule = (lambda x, t: torch.tanh(3 * x)), VPSchedule.linear()
    v = Denoiser(network, schedule, "v")
    edm = Denoiser(lambda x, t: -network(x, t), EDMSchedule(), "edm", sigma_data=1.0)
    x, z = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    t = torch.tensor([schedule.time_of(noise)], dtype=torch.float64)
    alpha, level = schedule.alpha(t), torch.tensor([noise], dtype=torch.float64)
    torch.testing.assert_close(v(alpha * x, t), edm(x, level), rtol=0, atol=1e-6)
    torch.testing.assert_close(v.loss(x, t, z), edm.loss(x, level, z), rtol=0, atol=1e-6)


def test_a_function_is_a_network():
    schedule = VPSchedule.linear()
    denoiser = Denoiser(lambda x, time: x * time.reshape(-1, 1, 1, 1), schedule, "x0")
    assert torch.equal(denoiser(X_0, 3), 3 * X_0)
    assert DPS(steps=2)(denoiser, X_0, Identity()).shape == X_0.shape
    assert torch.equal(Denoiser(lambda x, time, label: label, schedule, "x0", labels=X_0)(X_0, 3), X_0)
    with pytest.raises(TypeError, match=r"network to be called as network\(x_t, t\), got int"):
        Denoiser(3, schedule)


class Table(nn.Module):
    """A network that looks its times up, as one with a learned embedding does."""

    def __init__(self, name="time_embedding", steps=1000):
        super().__init__()
        self.add_module(name, nn.Embedding(steps, 2))
        self.table, self.seen = self.get_submodule(name), None

    def forward(self, x, time):
        self.seen = time
        return x * self.table(time)[..., None, None]


def test_times_are_whole_where_the_network_looks_them_up():
    network = Table()
    denoiser = Denoiser(network, VPSchedule.linear())
    for t, whole in ((299.7, 300), (0.2, 0), (torch.tensor([1.0, 2.4, 2.6, 999.0]), [1, 2, 3, 999])):
        denoiser(X_0, t)
        assert network.seen.dtype == torch.int64
        assert (network.seen == torch.tensor(whole)).all()
    for sampler in (MMPS(steps=5), ReverseFromObservation(steps=5)):  # of which times are fractions
        assert sampler(denoiser, X_0, Identity(), sigma=0.1).isfinite().all()
    assert denoiser.loss(X_0, torch.tensor([3, 4, 5, 6]), NOISE).isfinite().all()
    Denoiser(network, FlowSchedule())(X_0, 1000.0)
    assert (network.seen == 999).all()  # the last row
    unknown = Table("positions", 50)
    assert Denoiser(unknown, VPSchedule.linear(50), time_table=50)(X_0, 3.3).isfinite().all()
    assert Denoiser(Table("class_at_time"), VPSchedule.linear()).time_table is None


class Labelled(nn.Module):
    """A network that returns its third argument, with the attributes of one family."""

    def __init__(self, **attributes):
        super().__init__()
        self.__dict__.update(attributes)
        self.seen = "nothing"

    def forward(self, x, time, labels=None):
        self.seen = labels
        return x


class Asking(Labelled):
    """One that has to hear of labels, as the raw networks of EDM have."""

    def forward(self, x, time, labels):
        return super().forward(x, time, labels)


@pytest.mark.parametrize(
    ("network", "given", "seen"),
    [
        (Labelled(), None, None),
        (Asking(map_label=None), None, None),
        (Labelled(), 3, [3, 3, 3, 3]),
        (Labelled(num_classes=10), None, None),  # whatever it means there
        (Labelled(num_classes=10, label_emb=None), torch.tensor([1, 2, 3, 9]), [1, 2, 3, 9]),
        (Labelled(class_embedding=nn.Embedding(4, 8)), 3, [3, 3, 3, 3]),
        (Labelled(class_embedding=nn.Identity()), torch.ones(4, 2), [[1.0, 1.0]] * 4),
        (Labelled(label_dim=2), 1, [[0.0, 1.0]] * 4),
        (Labelled(label_dim=2), None, None),
        (
            Asking(map_label=nn.Linear(2, 8)),
            torch.tensor([0, 1, 1, 0]),
            [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]],
        ),
        (Asking(map_label=nn.Linear(2, 8)), None, [[0.0, 0.0]] * 4),
    ],
)
def test_labels_reach_the_network_as_it_takes_them(network, given, seen):
    Denoiser(network, VPSchedule.linear(), labels=given)(X_0, 3)
    assert seen is network.seen if seen is None else network.seen.tolist() == seen


@pytest.mark.parametrize("sampler", [DPS(steps=5), Prior(steps=5)])
def test_a_flow_of_predicted_noise_begins_without_signal(sampler):
    denoiser = Denoiser(lambda x, t: 0.9 * x, FlowSchedule(), "eps")
    x = sampler(denoiser, torch.zeros(2, 1, 4, 4), Identity(), sigma=0.1)
    assert x.isfinite().all()


def test_labels_of_a_call():
    network = Labelled(num_classes=3, label_emb=None)
    denoiser = Denoiser(network, VPSchedule.linear(), labels=0).eval()
    other = denoiser.labelled(torch.tensor([0, 1]))
    DPS(steps=2)(other, X_0[:2], Identity())
    assert network.seen.tolist() == [0, 1]
    assert not other.training
    assert denoiser.labels.tolist() == [0]
    assert not denoiser.state_dict()
    for labels, words in ((None, "labels to be given"), (3, r"in 0 \.\.\. 2"), (-1, r"in 0 \.\.\. 2")):
        with pytest.raises(ValueError, match=words):
            denoiser.labelled(labels)
    with pytest.raises(ValueError, match="one for each of 4 images"):
        other(X_0, 3)


def test_sentences():
    with pytest.raises(ValueError, match="prediction to be eps, v, x0, flow or edm"):
        Denoiser(nn.Identity(), VPSchedule.linear(), "noise")
    with pytest.raises(ValueError, match=r'got None\. Name it: "edm" for a raw network'):
        Denoiser(nn.Identity(), EDMSchedule())
    with pytest.raises(TypeError, match="schedule to be given"):
        Denoiser(nn.Identity())
    with pytest.raises(ValueError, match="sigma_data to be positive"):
        Denoiser(nn.Identity(), EDMSchedule(), "edm", sigma_data=0.0)
    preconditioned = Labelled(round_sigma=torch.as_tensor)
    assert Denoiser(preconditioned, EDMSchedule()).prediction == "x0"
    with pytest.raises(ValueError, match="preconditioning of its own"):
        Denoiser(preconditioned, EDMSchedule(), "edm")
    with pytest.raises(TypeError, match=r"DPS: expected denoiser .* got Identity\. Give Denoiser\("):
        DPS(steps=2)(nn.Identity(), X_0, Identity())
    with pytest.raises(ValueError, match="schedule to be an EDMSchedule"):
        Denoiser(nn.Identity(), VPSchedule.linear(), "edm")

    class Wrong(nn.Module):
        def forward(self, x, time):
            return x[:, :1]

    with pytest.raises(ValueError, match="output to have 2 channels"):
        Denoiser(Wrong(), VPSchedule.linear())(X_0, 3)


def test_a_network_is_asked_what_it_takes_once(monkeypatch):
    denoiser = Denoiser(Asking(map_label=None), VPSchedule.linear())
    monkeypatch.setattr(inspect, "signature", None)
    assert torch.equal(denoiser.raw(X_0, torch.tensor([3])), X_0)
