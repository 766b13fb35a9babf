"""Metrics against closed forms, and against the field's library where it computes the same."""

import math
import sys
import types
from collections import OrderedDict
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from emfast.evaluation import feature_spaces, frechet_distance, lpips, psnr, ssim


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(count: int, mean: torch.Tensor, root: torch.Tensor, seed: int) -> torch.Tensor:
    """Rows whose sample mean and sample covariance root @ root.T are exact."""
    rows = draw(count, len(mean), seed=seed)
    rows = torch.linalg.qr(rows - rows.mean(0)).Q * (count - 1) ** 0.5
    return rows @ root.T + mean


@given(st.floats(0.001, 1.5))
@settings(deadline=None)
def test_psnr_of_a_constant_error(error: float) -> None:
    truth = torch.full((2, 3, 4, 4), -0.75)
    x = truth.clone()
    x[1] += error
    values = psnr(x, truth)
    assert values.shape == (2,)
    assert values[0] == math.inf
    assert values[1] == pytest.approx(20 * math.log10(2 / error), abs=1e-2)


def test_psnr_is_per_image_and_clips() -> None:
    x, truth = draw(4, 1, 8, 8).float(), draw(4, 1, 8, 8, seed=1).float().clamp(-1.4, 1.4)
    together = psnr(x, truth)
    assert torch.allclose(together, torch.cat([psnr(x[i : i + 1], truth[i : i + 1]) for i in range(4)]))
    assert torch.equal(together, psnr(x.clamp(-1, 1), truth.clamp(-1, 1)))
    assert torch.equal(together, psnr(x.double(), truth))


def test_ssim() -> None:
    truth = draw(3, 3, 16, 16).float().clamp(-1, 1)
    assert torch.allclose(ssim(truth, truth), torch.ones(3))
    noisy = truth + 0.3 * draw(3, 3, 16, 16, seed=1).float()
    noisier = truth + 0.9 * draw(3, 3, 16, 16, seed=1).float()
    assert (ssim(noisier, truth) < ssim(noisy, truth)).all()
    assert (ssim(noisy, truth) < 1).all()
    assert ssim(noisy[:1], truth[:1]).shape == (1,)
    assert torch.allclose(ssim(noisy, truth)[:1], ssim(noisy[:1], truth[:1]))


def test_ssim_of_constant_images() -> None:
    # No variance: only the luminance term is left, of intensities in [0, 1].
    a, b, c = 0.2, 0.7, 0.01**2
    value = ssim(torch.full((1, 1, 16, 16), 2 * a - 1), torch.full((1, 1, 16, 16), 2 * b - 1))
    assert value.item() == pytest.approx((2 * a * b + c) / (a * a + b * b + c), abs=1e-3)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_shapes_must_agree(metric: object) -> None:
    name = metric.__name__  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=rf"{name}: expected truth of the shape \(2, 1, 16, 16\) of x, got \(1, 1,"):
        metric(torch.zeros(2, 1, 16, 16), torch.zeros(1, 1, 16, 16))  # type: ignore[operator]
    with pytest.raises(ValueError, match=rf"{name}: expected x of shape \(B, C, H, W\)"):
        metric(torch.zeros(1, 16, 16), torch.zeros(1, 16, 16))  # type: ignore[operator]


def test_bytes_are_images_and_other_units_are_refused() -> None:
    truth = torch.randint(0, 240, (2, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    x = truth + 7
    for metric in (psnr, ssim):
        scaled = metric(x / 127.5 - 1, truth / 127.5 - 1)
        torch.testing.assert_close(metric(x, truth), scaled)
        torch.testing.assert_close(metric(x / 127.5 - 1, truth), scaled)
        with pytest.raises(ValueError, match=r"\[-1, 1\]"):
            metric(x.float(), truth.float())


def test_ssim_needs_a_window() -> None:
    with pytest.raises(ValueError, match="ssim: expected x to have at least 11x11 pixels"):
        ssim(torch.zeros(1, 1, 10, 16), torch.zeros(1, 1, 10, 16))


@given(st.integers(1, 6), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_frechet_distance_of_commuting_gaussians(dimension: int, seed: int) -> None:
    basis = torch.linalg.qr(draw(dimension, dimension, seed=seed)).Q
    s, t = draw(2, dimension, seed=seed + 1).abs()
    mean_a, mean_b = draw(2, dimension, seed=seed + 2)
    a = with_moments(20, mean_a, basis * s, seed + 3)
    b = with_moments(31, mean_b, basis * t, seed + 4)
    expected = float((mean_a - mean_b).square().sum() + (s - t).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert frechet_distance(a.float(), b.float()) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_frechet_distance_of_general_gaussians() -> None:
    # In two dimensions the trace of the square root of a product is known from its trace and determinant.
    root_a, root_b = draw(2, 2, 2)
    cov_a, cov_b = root_a @ root_a.T, root_b @ root_b.T
    product = cov_a @ cov_b
    cross = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = float(4.0 + cov_a.trace() + cov_b.trace() - 2 * cross)
    a = with_moments(50, torch.tensor([2.0, 0.0]).double(), root_a, 1)
    b = with_moments(40, torch.zeros(2).double(), root_b, 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_is_a_distance() -> None:
    a, b = draw(30, 5), 2 * draw(40, 5, seed=1) + 1
    assert frechet_distance(a, a.flip(0)) < 1e-12
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    turn = torch.linalg.qr(draw(5, 5, seed=2)).Q
    assert frechet_distance(a @ turn + 3, b @ turn + 3) == pytest.approx(frechet_distance(a, b), rel=1e-10)


def test_frechet_distance_with_fewer_samples_than_features() -> None:
    a = draw(10, 200)
    assert frechet_distance(a, a.flip(0)) < 1e-10
    assert frechet_distance(a, a + 0.5) == pytest.approx(200 * 0.25, rel=1e-10)
    assert frechet_distance(a, 3 * (a - a.mean(0)) + a.mean(0)) == pytest.approx(4 * float(a.var(0).sum()), rel=1e-10)


def test_frechet_distance_agrees_with_the_library() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    identity = torch.nn.Identity()
    identity.num_features = 16  # type: ignore[assignment]
    a, b = draw(100, 16), draw(120, 16, seed=1) * torch.linspace(0.1, 2, 16) + 0.3
    library = FrechetInceptionDistance(feature=identity).set_dtype(torch.float64)
    library.update(a, real=True)
    library.update(b, real=False)
    assert frechet_distance(a, b) == pytest.approx(float(library.compute()), rel=1e-5)


def test_frechet_distance_refuses() -> None:
    a = draw(10, 4)
    for other, pattern in [(a[:, :3], "of shape"), (a[:1], "of shape"), (a[0], "of shape"), (a / 0, "to be finite")]:
        with pytest.raises(ValueError, match=f"frechet_distance: expected b {pattern}"):
            frechet_distance(a, other)


def test_lpips_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"lpips: expected weights to be a file, got .*none\. Give the path of"):
        lpips(x, x, weights=tmp_path / "none")
    with pytest.raises(ValueError, match="lpips: expected x to have 1 or 3 channels"):
        lpips(x[:, :2], x[:, :2], weights=tmp_path / "none")
    (tmp_path / "weights.pth").write_bytes(b"")
    monkeypatch.setattr(feature_spaces, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match=r"lpips: expected the package lpips to be installed, .*'emfast\[fid\]'"):
        lpips(x, x, weights=tmp_path / "weights.pth")


class FakeLPIPS(nn.Module):
    """Has the names of the package's network, of AlexNet's first layer only, and its way to be called."""

    def __init__(self, net: str, pnet_rand: bool, verbose: bool) -> None:
        super().__init__()
        assert (net, pnet_rand, verbose) == ("alex", True, False)
        self.net = nn.Module()
        self.net.slice1 = nn.Sequential(OrderedDict([("0", nn.Conv2d(3, 4, 11, 4, 2))]))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return (self.net.slice1(x) - self.net.slice1(y)).square().mean((1, 2, 3), keepdim=True)


def test_lpips_has_the_weights_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package itself was tried by hand, with random weights: it comes with torchvision."""
    module = types.ModuleType("lpips")
    module.LPIPS, module.__spec__ = FakeLPIPS, ModuleSpec("lpips", None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", module)
    layer = nn.Conv2d(3, 4, 11, 4, 2)
    weights = {"features.0.weight": layer.weight.detach(), "features.0.bias": layer.bias.detach()}
    torch.save({**weights, "classifier.1.weight": torch.zeros(2)}, tmp_path / "alexnet.pth")
    x, y = 2 * torch.rand(2, 4, 1, 33, 31) - 1
    found = lpips(x, y, weights=tmp_path / "alexnet.pth")
    torch.testing.assert_close(
        found, (layer(x.expand(-1, 3, -1, -1)) - layer(y.expand(-1, 3, -1, -1))).square().mean((1, 2, 3))
    )
    with pytest.raises(ValueError, match="lpips: expected x to have at least 31x31 pixels"):
        lpips(x[..., :30], y[..., :30], weights=tmp_path / "alexnet.pth")
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"to hold the layers of AlexNet, got no features\.0\.weight"):
        lpips(x, y, weights=tmp_path / "other.pth")
