"""How good are images: against the truth (PSNR, SSIM, LPIPS), and as a set (the Frechet distance)."""

from __future__ import annotations

import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emfast._check import check
from emfast.evaluation.feature_spaces import read_weights, require

SIDE = 31  # pixels that AlexNet needs
FAR = 1.5  # beyond it a true image is in other units than [-1, 1]


def psnr(
    x: Tensor,  # (B, C, H, W)
    truth: Tensor,  # (B, C, H, W)
) -> Tensor:
    r"""Returns the peak signal-to-noise ratio of each image, in dB.

    .. math:: 10 \log_{10} \frac{2^2}{\operatorname{mean} (x - x^\ast)^2}

    Arguments:
        x: The images; clipped to [-1, 1]. uint8, 0 ... 255, stand for them.
        truth: The true images; clipped too.
    Returns:
        (B,), float32; infinite where the images are equal.
    Raises:
        ValueError: If the shapes differ, or the truth is in other units.
    """
    x, truth = _checked_pair("psnr", x, truth)
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return peak_signal_noise_ratio(x, truth, data_range=2.0, reduction="none", dim=(1, 2, 3))


def coverage(
    truth: Tensor,  # (B, C, H, W)
    samples: Tensor,  # (K, B, C, H, W)
) -> float:
    """Returns how often the truth of an uncertain pixel lies between the least and the greatest of K samples.

    That is (K - 1) / (K + 1) for samples of the exact posterior. Uncertain are those whose samples differ, with a
    standard deviation above 0.01, and whose truth is not at the ends of the range, where clipping decides.

    Arguments:
        truth: The true images.
        samples: K >= 2 samples of each.
    Returns:
        The share, NaN if no pixel is uncertain.
    """
    inside, count = covered(truth, samples)
    return inside / count if count else math.nan


def covered(truth: Tensor, samples: Tensor) -> tuple[int, int]:
    """Returns of how many uncertain pixels the samples enclose the truth, and how many of them there are.

    Arguments:
        truth, samples: See `coverage`.
    """
    unknown = (samples.std(0) > 1e-2) & (truth.abs() < 0.95)
    inside = (truth >= samples.amin(0)) & (truth <= samples.amax(0))
    return int(inside[unknown].sum()), int(unknown.sum())


def ssim(
    x: Tensor,  # (B, C, H, W)
    truth: Tensor,  # (B, C, H, W)
) -> Tensor:
    """Returns the structural similarity of each image, of intensities in [0, 1] (Gaussian window, std 1.5, 11 pixels).

    It compares means too, relative to their size, so that it depends on where black is: images in [-1, 1] are shifted.

    Arguments:
        x: The images; clipped to [-1, 1].
        truth: The true images; clipped too.
    Returns:
        (B,), float32, at most 1.
    Raises:
        ValueError: If the shapes differ or the images are smaller than the window.
    References:
        | Image Quality Assessment: From Error Visibility to Structural Similarity (Wang et al., 2004)
    """
    x, truth = _checked_pair("ssim", x, truth)
    check(min(x.shape[-2:]) >= 11, "ssim", "x", "to have at least 11x11 pixels", x)
    from torchmetrics.functional.image import structural_similarity_index_measure

    value = structural_similarity_index_measure((x + 1) / 2, (truth + 1) / 2, data_range=1.0, reduction="none")
    return value.reshape(len(x))  # type: ignore[union-attr]


def lpips(
    x: Tensor,  # (B, C, H, W)
    truth: Tensor,  # (B, C, H, W)
    *,
    weights: str | os.PathLike[str],
) -> Tensor:
    """Returns the learned perceptual distance (LPIPS 0.1 on AlexNet) of each image.

    Arguments:
        x: The images; clipped to [-1, 1]; grey is repeated to RGB.
        truth: The true images; clipped too.
        weights: torchvision's AlexNet weights file (alexnet-owt-7be5be79.pth); the package lpips has the rest.
    Returns:
        (B,), float32.
    Raises:
        ValueError: If the shapes differ, the images are smaller than 31x31, or the weights are missing or damaged.
        RuntimeError: If the package lpips (extra `fid`) is missing.
    References:
        | The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., 2018), arXiv 1801.03924
    """
    x, truth = _checked_pair("lpips", x, truth)
    check(x.shape[1] in (1, 3), "lpips", "x", "to have 1 or 3 channels", x)
    check(min(x.shape[2:]) >= SIDE, "lpips", "x", f"to have at least {SIDE}x{SIDE} pixels", x)
    network = _lpips(str(weights)).to(x.device)
    with torch.no_grad():
        return network(x.expand(-1, 3, -1, -1), truth.expand(-1, 3, -1, -1)).reshape(len(x))


def frechet_distance(
    a: Tensor,  # (N, D)
    b: Tensor,  # (M, D)
) -> float:
    r"""Returns the (squared) Frechet distance between Gaussians fitted to two sets of features.

    .. math:: |\mu_a - \mu_b|^2 + \operatorname{tr}(\Sigma_a + \Sigma_b - 2 (\Sigma_a \Sigma_b)^{1/2})

    It is biased upwards for few samples: compare only values of equal N and M, and of the same feature space.

    Arguments:
        a: Features of one set.
        b: Features of the other.
    Returns:
        The distance, computed in float64.
    Raises:
        ValueError: If the shapes do not match, a set has fewer than 2 rows, or a value is not finite.
    References:
        | GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017),
          arXiv 1706.08500
    """
    for name, value in {"a": a, "b": b}.items():
        good = value.dim() == 2 and len(value) >= 2 and value.shape[1] == a.shape[-1]
        check(good, "frechet_distance", name, f"of shape (N >= 2, {a.shape[-1]})", value)
        check(bool(value.isfinite().all()), "frechet_distance", name, "to be finite", "NaN or inf")
    (mean_a, root_a), (mean_b, root_b) = _moments(a), _moments(b)
    # With S = R'R the eigenvalues of Sa Sb are the squared singular values of Ra Rb'. Unlike the eigenvalues of the
    # product they lose no digits when there are fewer samples than features and the covariances are singular.
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    value = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * cross
    return max(float(value), 0.0)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The mean, and R with R'R the covariance."""
    rows = rows.detach().cpu().double()
    mean = rows.mean(0)
    return mean, torch.linalg.qr(rows - mean, mode="r").R / (len(rows) - 1) ** 0.5


def _checked_pair(function: str, x: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    check(x.dim() == 4 and x.numel() > 0, function, "x", "of shape (B, C, H, W)", x)
    check(x.shape == truth.shape, function, "truth", f"of the shape {tuple(x.shape)} of x", truth)
    x, truth = (part.float() / 127.5 - 1 if part.dtype == torch.uint8 else part.float() for part in (x, truth))
    most, fix = float(truth.abs().max()), "Scale both: x / 127.5 - 1 from 0 ... 255, or give uint8"
    check(not most > FAR, function, "truth", "to be in [-1, 1]", f"values up to {most:.4g}", fix)
    return x.detach().clamp(-1, 1), truth.detach().clamp(-1, 1)


@lru_cache(maxsize=1)
def _lpips(weights: str) -> Any:
    fix = "Give the path of torchvision's alexnet-owt-7be5be79.pth"
    check(Path(weights).is_file(), "lpips", "weights", "to be a file", weights, fix)
    require("lpips", "lpips", "lpips", "fid")
    import lpips

    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    given = read_weights("lpips", weights)
    names = {name: f"features.{name.split('.', 1)[1]}" for name in network.net.state_dict()}
    absent = [name for name in names.values() if name not in given]
    check(not absent, "lpips", weights, "to hold the layers of AlexNet", f"no {', '.join(absent[:1])}", fix)
    network.net.load_state_dict({name: given[source] for name, source in names.items()})
    return network.eval().requires_grad_(False)
