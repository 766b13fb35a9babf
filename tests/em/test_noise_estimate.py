"""An unknown noise level: where it ends under a known prior, and that a run keeps it."""

import json
import math

import pytest
import torch
from contracts import Gaussian
from tiny_run import train

from emfast import random
from emfast._files import read_json
from emfast.commands.run_settings import run_settings
from emfast.config import Config
from emfast.diffusion import VPSchedule
from emfast.em import Observations
from emfast.em.noise_estimate import estimate_sigma
from emfast.em.work import Guest
from emfast.operators import GaussianBlur, Identity, Mask
from emfast.samplers import MMPS, ReverseFromObservation

IDS, SIGMA = torch.arange(192), 0.4


def likelihood(prior, observations, sigma):
    """Log-likelihood of the observations under a Gaussian prior."""
    total, y = 0.0, observations.read(IDS).double()
    basis = torch.eye(6, dtype=torch.float64).reshape(6, *prior.shape)
    for i in IDS:
        parameters = observations.operator.parameters(i[None], prior.shape)
        matrix = torch.stack([observations.operator.apply(e[None], parameters).flatten() for e in basis], 1)
        seen = matrix.abs().sum(1) > 0
        covariance = matrix @ prior.covariance @ matrix.T + sigma**2 * torch.eye(6, dtype=torch.float64)
        normal = torch.distributions.MultivariateNormal((matrix @ prior.mean)[seen], covariance[seen][:, seen])
        total += float(normal.log_prob(y[i].flatten()[seen]))
    return total


@pytest.mark.parametrize("start", [3.0, 1 / 3])
@pytest.mark.parametrize(
    ("operator", "sampler"),
    [
        (Identity(), ReverseFromObservation(clip=False)),
        (Mask(missing=0.3), MMPS(clip=False)),
        (GaussianBlur(size=3, std=0.7), MMPS(clip=False)),
    ],
)
def test_the_estimate_is_that_of_the_greatest_likelihood(operator, sampler, start):
    prior = Gaussian(VPSchedule.linear())
    # As images are: in some directions there is nothing but the noise. Without those nothing would tell it.
    root = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prior.covariance = 0.5 * root @ root.T + 1e-3 * torch.eye(6, dtype=torch.float64)
    prior.spectrum = torch.linalg.eigh(prior.covariance)
    prior.denoiser.place = torch.nn.Parameter(torch.zeros(()))  # tells the device
    z = random.normal(prior.shape, ids=IDS, seed=1).flatten(1).double()
    x = prior.mean + z @ torch.linalg.cholesky(prior.covariance).T
    y = operator.observe(x.reshape(-1, *prior.shape).float(), SIGMA, ids=IDS, seed=2)
    observations = Observations(operator, y=y, guessed=True)
    found = estimate_sigma(sampler, prior.denoiser, observations.assuming(SIGMA * start), IDS, batch_size=192, seed=3)
    around = [likelihood(prior, observations, found * factor) for factor in (0.92, 1.0, 1.08)]
    assert around[1] > max(around[0], around[2])
    assert abs(math.log(found / SIGMA)) < 0.1


FLAGS = (
    *("--sigma", "auto", "--sigma_start", "0.3", "--data.sigma", "0.1", "--rounds", "2", "--final_rounds", "0"),
    *(
        "--evaluation.samples",
        "0",
        "--operator",
        "Identity",
        "--sampler",
        "ReverseFromObservation",
        "--sampler.steps",
        "2",
    ),
)


@pytest.mark.parametrize("schedule", ["rounds", "continuous"])
def test_a_run_notes_the_noise_and_goes_on_with_it(tmp_path, schedule):
    flags = (*FLAGS, "--schedule", schedule)
    assert train(tmp_path, *flags) == 0
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [read_json(run / f"rounds/00{k}/sigma.json")["sigma"] for k in (1, 2)]
    assert [row.get("sigma") for row in rows] == [None, *found]
    assert 0 < found[1] != found[0] > 0
    assert read_json(run / "model" / "emfast.json")["sigma"] == found[1]
    assert run_settings(run)["sigma"] == found[1]
    if schedule == "rounds":
        guest = Guest(Config.from_yaml(run / "config.yaml"), run, "cpu", None, None, None)
        guest.e_steps.plan(2, "warm", guest.model(1))
        assert guest.observations.sigma == found[1]
    # The same again without the last round, whose noise is estimated anew.
    kept = {k: (run / f"rounds/{k:03}/model/unet/diffusion_pytorch_model.safetensors").read_bytes() for k in (1, 2)}
    for path in sorted((run / "rounds/002").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert train(tmp_path, *flags) == 0
    assert read_json(run / "rounds/002/sigma.json")["sigma"] == found[1]
    assert (run / "rounds/002/model/unet/diffusion_pytorch_model.safetensors").read_bytes() == kept[2]


def test_an_e_step_of_no_spread_changes_nothing(tmp_path):
    """The probability flow's images are no samples of the posterior, whose spread the estimate rests on."""
    found = []
    for eta in ("0", "1"):
        (folder := tmp_path / eta).mkdir()
        assert train(folder, *FLAGS, "--rounds", "1", "--sampler.eta", eta) == 0
        found.append(read_json(folder / "run/rounds/001/sigma.json")["sigma"])
    assert found[0] == found[1]


def test_simulated_noise_has_to_be_given(tmp_path, capsys):
    assert train(tmp_path, "--sigma", "auto") != 0
    assert "data.sigma to be given where observations are simulated and sigma is auto" in capsys.readouterr().err
