"""The Gaussian prior fitted to observations: its posterior in closed form, and what EM recovers."""

import dataclasses
import shutil

import pytest
import torch
from tiny_run import train

from emfast._files import read_tensors, write_tensors
from emfast.data import Images
from emfast.em import Observations
from emfast.em.initialisation import GaussianPrior, _leading, fit_gaussian, usual_rank
from emfast.em.spectrum import inverse, natural_spectrum
from emfast.em.state import RunFolder
from emfast.operators import GaussianBlur, Identity, Linear, Mask, Operator

SHAPE = (1, 3, 4)
COUNT = 4000
SUMS = Linear(lambda x: x.sum(-1), shape=SHAPE)  # of rows: no images


def truth(rank=2):
    generator = torch.Generator().manual_seed(0)
    factor = 0.5 * torch.randn(rank, *SHAPE, dtype=torch.float64, generator=generator)
    mean = torch.linspace(-0.5, 0.5, 12, dtype=torch.float64).reshape(SHAPE)
    diagonal = torch.linspace(0.01, 0.03, 12, dtype=torch.float64).reshape(SHAPE)
    return GaussianPrior(mean, factor, diagonal, natural_spectrum(*SHAPE[1:], torch.device("cpu")))


def matrix(prior):
    """The covariance."""
    return prior.covariance(torch.eye(12).reshape(12, *SHAPE).to(prior.mean)).flatten(1).double()


def observed(operator, sigma, prior):
    images = Images(prior.sample(torch.arange(COUNT), seed=1).float())
    return Observations(operator, sigma=sigma, images=images, seed=2)


@pytest.mark.parametrize(("operator", "sigma"), [(Identity(), 0.4), (GaussianBlur(size=3, std=1.0), 0.1), (SUMS, 0.1)])
def test_posterior_is_the_closed_form(operator, sigma):
    prior, ids = truth(), torch.arange(COUNT)
    y = operator.observe(prior.sample(torch.tensor([0]), seed=3), sigma)
    same = Observations(operator, sigma=sigma, y=y.float().expand(COUNT, *y.shape[1:]))
    x = prior.posterior(same, ids, seed=4, iterations=30).flatten(1)
    basis = torch.eye(12, dtype=torch.float64).reshape(12, *SHAPE)
    forward = operator.apply(basis, operator.parameters(torch.tensor([0]), SHAPE)).flatten(1).T
    covariance = matrix(prior)
    system = forward @ covariance @ forward.T + sigma**2 * torch.eye(len(forward))
    gain = covariance @ forward.T @ system.inverse()
    mean = prior.mean.flatten() + gain @ (y.float().double().flatten() - forward @ prior.mean.flatten())
    expected = covariance - gain @ forward @ covariance
    std = expected.diagonal().sqrt()
    assert ((x.mean(0) - mean).abs() <= 5 * std / COUNT**0.5).all()
    assert ((torch.cov(x.T) - expected).abs() <= 5 * (2 / COUNT) ** 0.5 * torch.outer(std, std)).all()


class Weighted(Operator):
    """Pixels times weights of their own."""

    def apply(self, x, parameters):
        return x * parameters["weight"]

    def adjoint(self, y, parameters):
        return y * parameters["weight"]


@pytest.mark.parametrize("rows", [(1, *SHAPE[1:]), (1, 1, 1)])
def test_an_operator_in_another_precision(rows):
    weight = torch.rand(20, *rows, generator=torch.Generator().manual_seed(5)) + 0.5
    y, ids, found = truth().sample(torch.arange(20), seed=6).float(), torch.arange(20), []
    for given in (weight, weight.double()):
        data = Observations(Weighted(), sigma=0.1, y=y, given={"weight": given})
        found.append(fit_gaussian(data, ids, rounds=2).posterior(data, ids, seed=7))
        assert found[-1].dtype == torch.float32
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(("operator", "sigma"), [(Mask(missing=0.5), 0.05), (GaussianBlur(size=9, std=2.0), 0.01)])
def test_few_iterations_in_float32_do(operator, sigma):
    """Though variances differ by 10,000 times and more, as in images: the system is preconditioned."""
    shape, generator = (3, 24, 24), torch.Generator().manual_seed(0)
    spectrum = natural_spectrum(24, 24, torch.device("cpu"))
    smooth = inverse(spectrum.sqrt() * torch.randn(24, *shape, generator=generator))
    prior = GaussianPrior(smooth[0].double(), smooth.double() / 2, torch.full(shape, 0.05).double(), spectrum)
    ids = torch.arange(6)
    data = Observations(operator, sigma=sigma, images=Images(prior.sample(ids, seed=1).float()), seed=2)
    expected = prior.posterior(data, ids, seed=3, iterations=1000)
    single = GaussianPrior(*(getattr(prior, field.name).float() for field in dataclasses.fields(prior)))
    found = single.posterior(data, ids, seed=3)
    assert float((found - expected).square().mean().sqrt()) < 0.02  # of images whose pixels vary by 2.5
    torch.testing.assert_close(single.posterior(data, ids[2:3], seed=3), found[2:3], rtol=0, atol=0.1)  # rounding


@pytest.mark.parametrize(("operator", "sigma"), [(Mask(missing=0.5), 0.0), (Identity(), 0.3)])
def test_em_recovers_a_known_covariance(operator, sigma):
    """From observations of which half the pixels are missing, or noisy ones: neither mean nor covariance is seen."""
    known = truth()
    found = fit_gaussian(observed(operator, sigma, known), torch.arange(COUNT), rank=2, rounds=40)
    assert float((found.mean - known.mean).abs().max()) < 0.05
    error = torch.linalg.matrix_norm(matrix(found) - matrix(known)) / torch.linalg.matrix_norm(matrix(known))
    assert float(error) < 0.1


def test_what_no_observation_shows_is_as_in_the_clean_images():
    known, mask = truth(), torch.ones(SHAPE[1:])
    mask[0, 0] = 0  # the first pixel, in every image
    data, clean, ids = (
        observed(Mask(mask=mask), 0.1, known),
        known.sample(torch.arange(300), seed=7),
        torch.arange(1000),
    )
    found = [fit_gaussian(data, ids, rank=2, rounds=60, clean=images) for images in (clean, None)]
    with_clean, without = (
        float((matrix(prior) - matrix(known))[0].abs().max() / matrix(known)[0, 0]) for prior in found
    )
    assert with_clean < 0.2 < without


def test_the_rank_grows_with_the_images():
    assert [usual_rank(*sizes) for sizes in ((512, 256), (24, 144), (5000, 3072), (5000, 49152))] == [32, 6, 111, 128]
    assert usual_rank(2, 9) == 1
    data = observed(Identity(), 0.3, truth())
    assert len(fit_gaussian(data, torch.arange(40), rounds=1).factor) == 7  # 2 sqrt(12)


def test_fit_is_the_covariance_at_full_rank():
    images = truth().sample(torch.arange(500), seed=5)
    found = GaussianPrior.fit(images, rank=12)
    torch.testing.assert_close(matrix(found), torch.cov(images.flatten(1).T), rtol=1e-2, atol=1e-3)


def test_a_run_without_clean_images(tmp_path):
    flags = ("--data.clean_count", "0", "--gaussian.rank", "4", "--gaussian.rounds", "3")
    assert train(tmp_path, *flags) == 0
    first, second, *_ = RunFolder(tmp_path / "run").rows()
    assert first["observations"] == 24
    assert first["psnr"] > second["psnr"] - 20
    assert first["network_evaluations"] == 0
    assert (tmp_path / "run" / "rounds" / "000" / "reconstructions.png").exists()


def test_a_gaussian_of_another_kind_is_refused(tmp_path, capsys):
    """One that an earlier version has left in a run that it began."""
    flags = ("--data.clean_count", "0", "--gaussian.rank", "4", "--gaussian.rounds", "3", "--rounds", "0")
    assert train(tmp_path, *flags, "--final_rounds", "0") == 0
    path = tmp_path / "run" / "rounds" / "000" / "gaussian.safetensors"
    tensors = read_tensors(path)
    del tensors["spectrum"]
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    write_tensors(path, tensors)
    assert train(tmp_path, *flags, "--final_rounds", "0") != 0
    assert "gaussian.safetensors to hold seconds, mean, factor, diagonal, spectrum" in capsys.readouterr().err


@pytest.mark.parametrize(("operator", "begins"), [("Mask", True), ("Identity", True), ("GaussianBlur", False)])
def test_auto_adds_a_gaussian_where_observations_leave_no_detail_out(tmp_path, operator, begins):
    """The first reconstructions under a Gaussian, beside the clean images."""
    flags = ("--operator", operator, "--sigma", "0.1", "--gaussian.always", "auto", "--gaussian.rounds", "2")
    assert train(tmp_path, *flags, "--gaussian.rank", "4", "--rounds", "0", "--final_rounds", "0") == 0
    assert (tmp_path / "run" / "rounds" / "000" / "gaussian.safetensors").exists() == begins


def test_leading_directions_of_many_images_are_those_of_all_of_them():
    """Those found by iteration catch what the exact ones do, of images whose spectrum falls as slowly as 1 / k."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 600, generator=generator, dtype=torch.float64)).Q for n in (700, 650))
    scale = 1 / torch.arange(1, 601, dtype=torch.float64)
    rows = left * scale @ right.mT
    found = _leading(rows, 32)
    torch.testing.assert_close(found.norm(dim=1), scale[:32], rtol=1e-3, atol=0)
    torch.testing.assert_close((found @ right[:, :24]).diagonal().abs(), scale[:24], rtol=1e-3, atol=0)
