"""Held-out observations: what they tell of a model without the truth, and that nothing is trained on them."""

import json
import math

import pytest
import torch
from contracts import Gaussian
from tiny_run import one_sentence, train

from emfast import random
from emfast.config import Config
from emfast.data import Images
from emfast.data.store import Store
from emfast.diffusion import VPSchedule
from emfast.em import Observations
from emfast.em.held_out import check_held_out, measure_held_out
from emfast.em.inputs import read_inputs
from emfast.operators import Downsample, GaussianBlur, Identity, Mask, Operator
from emfast.samplers import MMPS, ReverseFromObservation

COUNT, SIGMA = 1024, 0.3


def prior_of(scale):
    """A Gaussian prior whose covariance is that of the images, times a factor."""
    prior = Gaussian(VPSchedule.linear())
    prior.covariance = scale * prior.covariance
    prior.spectrum = torch.linalg.eigh(prior.covariance)
    prior.denoiser.place = torch.nn.Parameter(torch.zeros(()))  # tells the device
    return prior


def images_of(prior):
    z = random.normal(prior.shape, ids=torch.arange(COUNT), seed=1).flatten(1).double()
    x = prior.mean + z @ torch.linalg.cholesky(prior.covariance).T
    return x.reshape(-1, *prior.shape).float()


CASES = [
    (Identity(), SIGMA, ReverseFromObservation(steps=40, clip=False)),
    (GaussianBlur(size=3, std=0.7), SIGMA, MMPS(steps=40, clip=False)),
    (Mask(missing=0.3), 0.0, MMPS(steps=40, clip=False)),
    (Mask(missing=0.3), SIGMA, MMPS(steps=40, clip=False)),
]


@pytest.mark.parametrize(("operator", "sigma", "sampler"), CASES)
def test_the_exact_model_has_the_variance_that_its_error_asks_for_and_one_too_sure_less(operator, sigma, sampler):
    exact, sure = prior_of(1.0), prior_of(0.2)
    y = operator.observe(images_of(exact), sigma, ids=torch.arange(COUNT), seed=2)
    data = Observations(operator, y=y, sigma=sigma)
    found = [
        measure_held_out(prior.denoiser, data, torch.arange(COUNT), batch_size=COUNT, seed=3, sampler=sampler)
        for prior in (exact, sure)
    ]
    assert 0.85 < found[0]["held_out_variance"] < 1.15
    assert found[1]["held_out_variance"] < 0.7 * found[0]["held_out_variance"]


@pytest.mark.parametrize(("operator", "sigma", "sampler"), CASES)
def test_the_psnr_is_that_of_samples_against_the_truth(operator, sigma, sampler):
    prior, ids = prior_of(1.0), torch.arange(COUNT)
    x, fainter = images_of(prior), sigma * math.sqrt(1.25)
    data = Observations(operator, y=operator.observe(x, sigma, ids=ids, seed=2), sigma=sigma)
    found = measure_held_out(prior.denoiser, data, ids, batch_size=COUNT, seed=3, sampler=sampler)["held_out_psnr"]
    if isinstance(operator, Mask):  # the same error, of fresh pixels that are hidden
        masks = operator.parameters(ids, prior.shape)["mask"]
        hidden = (random.uniform((1, *prior.shape[1:]), ids=ids, seed=9) < 0.1) & (masks == 1)
        other = Mask(mask=masks * ~hidden)
        y = other.observe(x, sigma, ids=ids, seed=4)
        a = sampler(prior.denoiser, y, other, sigma=sigma, ids=ids, seed=5)
        error = (a - x).square()[hidden.expand_as(x)].mean()
    else:
        y = operator.observe(x, fainter, ids=ids, seed=4)
        a = sampler(prior.denoiser, y, operator, sigma=fainter, ids=ids, seed=5)
        error = operator.apply(a - x, operator.parameters(ids, prior.shape)).square().mean()
    assert found == pytest.approx(float(10 * torch.log10(4 / error)), abs=0.5)


def test_those_held_out_are_spread_evenly_and_no_others_are_learned_from():
    y = torch.rand(20, 1, 4, 4) - 0.5
    data = Observations(Identity(), y=y, sigma=0.1).holding_out(4)
    assert data.held_out.tolist() == [4, 8, 11, 15]
    assert len(data) == 16
    assert sorted([*data.ids.tolist(), *data.held_out.tolist()]) == list(range(20))
    torch.testing.assert_close(data.read(data.held_out), y[data.held_out])


@pytest.mark.parametrize("schedule", ["rounds", "continuous"])
def test_a_run_measures_them_and_neither_reconstructs_nor_trains_on_them(tmp_path, monkeypatch, schedule):
    monkeypatch.setattr("emfast.em.held_out.MEASURED", 1)  # in one way: nothing is asked of the figures here
    final = "1" if schedule == "rounds" else "0"
    assert train(tmp_path, "--data.held_out=4", f"--schedule={schedule}", f"--final_rounds={final}") == 0
    folder = tmp_path / "run"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row["held_out_psnr"] > 0 and row["held_out_variance"] > 0 for row in rows)
    ids = Store.open(folder / "rounds" / f"{rows[-1]['round']:03d}" / "reconstructions").load("ids").tolist()
    assert sorted(ids) == [id for id in range(24) if id not in (5, 9, 14, 18)]
    assert read_inputs(Config.from_yaml(folder / "config.yaml")).observations.held_out.tolist() == [5, 9, 14, 18]


def test_a_guess_of_the_noise_measures_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("emfast.em.held_out.MEASURED", 1)
    flags = ("--sigma=auto", "--sigma_start=0.3", "--data.sigma=0.1", "--operator=Identity", "--final_rounds=0")
    sampler = ("--sampler=ReverseFromObservation", "--sampler.steps=2", "--evaluation.samples=0")
    assert train(tmp_path, "--data.held_out=4", *flags, *sampler) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["held_out_psnr"] is rows[0]["held_out_variance"] is None
    assert rows[1]["held_out_psnr"] > 0


def test_what_they_measure_does_not_depend_on_the_batch():
    prior = prior_of(1.0)
    y = Identity().observe(images_of(prior)[:12], SIGMA, ids=torch.arange(12), seed=2)
    data = Observations(Identity(), y=y, sigma=SIGMA)
    found = [
        measure_held_out(prior.denoiser, data, torch.arange(12), batch_size=size, seed=3)["held_out_psnr"]
        for size in (12, 5)
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-4)


class Saturating(Operator):
    """Can only be simulated."""

    def simulate(self, x, parameters, generator, sigma=0.0):
        """A detector that records nothing above a half."""
        return x.clamp(max=0.5)


@pytest.mark.parametrize(
    ("operator", "sigma"), [(GaussianBlur(), 0.0), (Identity(), 0.0), (Downsample(factor=2), 0.0), (Saturating(), 0.1)]
)
def test_what_cannot_be_taken_apart_is_refused(operator, sigma):
    data = Observations(operator, images=Images(torch.rand(8, 1, 12, 12) - 0.5), sigma=sigma)
    with pytest.raises(ValueError, match=r"expected data\.held_out to be of a mask, or of noise that sigma tells"):
        check_held_out(data, sigma)


def test_more_than_half_is_refused(tmp_path, capsys):
    assert train(tmp_path, "--data.held_out=13") == 2
    words = ("data.held_out to be at most half of 24 observations", "13")
    assert one_sentence(capsys.readouterr().err, words)


def test_few_observations_are_taken_apart_in_several_ways(monkeypatch):
    """What chance adds to the figures of 8 observations, over seeds, is less so than by one way."""
    prior = prior_of(1.0)
    y = Identity().observe(images_of(prior)[:8], SIGMA, ids=torch.arange(8), seed=2)
    data = Observations(Identity(), y=y, sigma=SIGMA)

    def spread():
        sampler = ReverseFromObservation(steps=8, clip=False)
        found = [
            measure_held_out(prior.denoiser, data, torch.arange(8), seed=seed, sampler=sampler)["held_out_variance"]
            for seed in range(12)
        ]
        return float(torch.tensor([value for value in found if value is not None]).log().std())

    several = spread()
    monkeypatch.setattr("emfast.em.held_out.MEASURED", 1)
    assert several < 0.7 * spread()
