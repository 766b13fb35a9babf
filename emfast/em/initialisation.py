"""A first prior without a single clean image: a Gaussian, fitted to the observations by EM."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from emfast import random
from emfast._check import check
from emfast.em.observations import Observations
from emfast.em.spectrum import inverse, natural_spectrum, spectrum_of, transform
from emfast.operators.conjugate_gradient import conjugate_gradient

# The variance to begin with, less than that of images: what no observation shows (detail under a blur) keeps it.
START = 0.1
LEADING = 32  # columns of the low rank that precondition where every image has its own A: what they give takes memory
PROBES = 16  # draws of the rest that its spectrum is taken from
NUMBERS = 2**25  # of what A L is for all observations at once
# Beyond so many images and pixels the leading directions are found by iteration, with so many more than are wanted.
EXACT, SPARE, ITERATIONS = 512, 8, 6


@dataclass(frozen=True)
class GaussianPrior:
    r"""A Gaussian over images: a covariance of low rank, and what it leaves out, a spectrum under an envelope.

    .. math::
        x \sim \mathcal N(\mu, L L^\top + D^{1/2} F^\top K F D^{1/2}), \quad D = \mathrm{diag}(d), K = \mathrm{diag}(k)

    F is the cosine transform: pixels vary as much as d says, and as smoothly as k.

    Arguments:
        mean: (C, H, W).
        factor: (R, C, H, W), the columns of L.
        diagonal: (C, H, W), d > 0.
        spectrum: (H, W), k > 0, its mean about 1.
    """

    mean: Tensor
    factor: Tensor
    diagonal: Tensor
    spectrum: Tensor

    def to(self, device: torch.device | str) -> GaussianPrior:
        """Returns the same Gaussian on a device, where its samples are drawn."""
        return GaussianPrior(*(x.to(device) for x in (self.mean, self.factor, self.diagonal, self.spectrum)))

    def covariance(self, v: Tensor) -> Tensor:
        """Returns the product of the covariance with (B, C, H, W) vectors."""
        flat, std = self.factor.flatten(1), self.diagonal.sqrt()
        rest = std * inverse(self.spectrum * transform(std * v))
        return ((v.flatten(1) @ flat.T) @ flat).reshape(v.shape) + rest

    def sample(self, ids: Tensor, seed: int) -> Tensor:
        """Returns one image for every id, (B, C, H, W).

        Arguments:
            ids: (B,) int64 ids.
            seed: The key of the noise.
        """
        shape = tuple(self.mean.shape)
        z = random.normal((len(self.factor),), ids=ids, seed=random.derive(seed, "factor")).to(self.mean)
        low_rank = (z @ self.factor.flatten(1)).reshape(-1, *shape)
        return self.mean + low_rank + self._rest(ids, seed)

    def _rest(self, ids: Tensor, seed: int) -> Tensor:
        """Returns what a sample has beside the low rank, (B, C, H, W)."""
        e = random.normal(tuple(self.mean.shape), ids=ids, seed=random.derive(seed, "diagonal")).to(self.mean)
        return self.diagonal.sqrt() * inverse(self.spectrum.sqrt() * transform(e))

    def batches(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Returns ids in parts of which `posterior` holds no more than some hundred MB."""
        return ids.split(max(1, min(1024, NUMBERS // self.factor[:LEADING].numel())))

    def posterior(self, observations: Observations, ids: Tensor, *, seed: int, iterations: int = 25) -> Tensor:
        r"""Returns one sample of p(x | y) for every id, (B, C, H, W): exact when the solver has converged.

        A sample of the prior is observed in turn, and corrected by what its observation lacks (Matheron's rule):

        .. math:: x = x' + \Sigma A^\top (A \Sigma A^\top + \sigma^2 I)^{-1} (y - A x' - n')

        Arguments:
            observations: The observations.
            ids: (B,) the ids to reconstruct.
            seed: The key of the samples.
            iterations: Conjugate-gradient iterations, each image on its own.
        """
        y, operator = observations.read(ids).to(self.mean), observations.operator
        ids = ids.to(y.device)
        parameters = operator.parameters(ids, tuple(y.shape[1:]))
        sigma = max(observations.sigma, 1e-2)  # with no noise at all the system may be singular
        x = self.sample(ids, seed)
        z = random.normal(tuple(y.shape[1:]), ids=ids, seed=random.derive(seed, "noise")).to(y)

        def apply(x: Tensor) -> Tensor:  # an operator, or its parameters, may be in another precision
            return operator.apply(x, parameters).to(y)

        def spread(u: Tensor) -> Tensor:
            return self.covariance(operator.adjoint(u, parameters).to(y))

        def system(u: Tensor) -> Tensor:
            return sigma**2 * u + apply(spread(u))

        residual = y - apply(x) - sigma * operator.noise(z, parameters).to(y)
        shared = all(len(values) == 1 for values in parameters.values())
        u = conjugate_gradient(system, residual, iterations, self._precondition(apply, shared, len(ids), sigma))
        return x + spread(u)

    def _precondition(
        self, apply: Callable[[Tensor], Tensor], shared: bool, count: int, sigma: float
    ) -> Callable[[Tensor], Tensor]:
        r"""Returns close to the inverse of the system of `posterior`; few iterations and float32 do with it.

        Exact is what the first columns of the low rank do, whose eigenvalues are the large ones, G = A L. What the rest
        does is taken for a spectrum B, if all images have one A and are observed as images, else for white.

        .. math::
            (G G^\top + B)^{-1} = B^{-1/2} (I - W^\top W) B^{-1/2}, \quad W = R^{-1} G^\top B^{-1/2},
            \quad R R^\top = I + G^\top B^{-1} G

        Arguments:
            apply: A, in the precision of the prior.
            shared: Whether all images have one A.
            count: How many images there are.
            sigma: The standard deviation of the noise.
        """
        count, columns = (1, self.factor) if shared else (count, self.factor[:LEADING])
        ids, others = torch.arange(PROBES if shared else 1, device=self.mean.device), self.factor[len(columns) :]
        z = random.normal((len(others),), ids=ids, seed=0).to(self.mean)
        probes = self._rest(ids, 0) + torch.einsum("br,rchw->bchw", z, others)
        probes = apply(probes if shared else probes.expand(count, *self.mean.shape))
        there: Callable[[Tensor], Tensor] = _same
        back: Callable[[Tensor], Tensor] = _same
        if shared and probes.shape[2:] == self.mean.shape[1:]:
            there, back, power = transform, inverse, spectrum_of(probes, floor=0.0)
        else:
            power = probes.reshape(count, -1).square().mean(1).reshape(-1, *[1] * (probes.ndim - 1))
        scale = (sigma**2 + power).rsqrt()
        seen = [scale * there(apply(x.expand(count, *x.shape))) for x in columns]
        g = torch.stack([x.flatten(1) for x in seen], 1)  # (count, R, M)
        identity = torch.eye(g.shape[1], dtype=g.dtype, device=g.device)
        root = torch.linalg.cholesky(g @ g.mT + identity)
        w = torch.linalg.solve_triangular(root, identity.expand_as(root), upper=False) @ g

        def precondition(v: Tensor) -> Tensor:
            rows = (scale * there(v)).reshape(count, -1, g.shape[2])  # faster products than with columns
            return back(scale * (rows - (rows @ w.mT) @ w).reshape(v.shape))

        return precondition

    @classmethod
    def fit(cls, images: Tensor, rank: int) -> GaussianPrior:
        """Returns the Gaussian of images (N, C, H, W): their mean, leading directions, and what these leave out.

        Arguments:
            images: (N, C, H, W) in data units.
            rank: How many directions.
        """
        shape = images.shape[1:]
        flat = images.flatten(1)
        mean = flat.mean(0)
        rank = min(rank, len(flat) - 1, flat.shape[1])
        rows = flat - mean
        leading = _leading(rows, rank)
        basis = torch.nn.functional.normalize(leading, dim=1)
        rest = rows - (rows @ basis.T) @ basis
        diagonal = rest.var(0).clamp_min(1e-4 * float(flat.var(0).mean()) + 1e-8).reshape(shape)
        factor = (leading / math.sqrt(len(flat) - 1)).reshape(-1, *shape)
        return cls(mean.reshape(shape), factor, diagonal, spectrum_of(rest.reshape(images.shape) / diagonal.sqrt()))


def _same(x: Tensor) -> Tensor:
    return x


def _leading(rows: Tensor, rank: int) -> Tensor:
    """Returns the first right singular vectors of a matrix (N, D), times their singular values: (rank, D).

    Of a large one by subspace iteration: a step shrinks what lies outside by the squares of ratios of singular values.

    References:
        | Finding Structure with Randomness (Halko, Martinsson and Tropp, 2011), arXiv 0909.4061
    """
    basis = None
    if min(rows.shape) > max(EXACT, rank + SPARE):
        ids = torch.arange(rank + SPARE, device=rows.device)
        basis = random.normal((rows.shape[1],), ids=ids, seed=0).to(rows).mT
        for _ in range(ITERATIONS):
            basis = torch.linalg.qr(rows.mT @ (rows @ basis)).Q
        rows = rows @ basis
    _, scale, directions = torch.linalg.svd(rows, full_matrices=False)
    found = scale[:rank, None] * directions[:rank]
    return found if basis is None else found @ basis.mT


def usual_rank(count: int, numbers: int) -> int:
    """Returns a rank: twice the root of the numbers in an image, but at most 128 and a quarter of the images.

    Arguments:
        count: How many images it is fitted to.
        numbers: C H W, how many numbers each has.
    """
    return max(1, min(128, round(2 * math.sqrt(numbers)), count // 4))


def fit_gaussian(
    observations: Observations,
    ids: Tensor,
    *,
    rank: int | None = None,
    rounds: int = 16,
    seed: int = 0,
    clean: Tensor | None = None,
    device: torch.device | str = "cpu",
    callback: Callable[[int, int], None] | None = None,
) -> GaussianPrior:
    """Returns the Gaussian prior that EM finds from corrupted observations alone.

    Every round samples each observation's posterior under the current Gaussian, exactly, and fits the next Gaussian to
    the samples and to the clean images that there are. The sampled moments are those of EM in expectation. What no
    observation shows, such as detail under a blur, is then as in the clean images; without these as in photographs,
    whose spectrum it begins with.

    Arguments:
        observations: The observations.
        ids: (N,) which of them to learn from, 2 or more.
        rank: The rank of the covariance beside what has a spectrum alone; none: `usual_rank`.
        rounds: The number of EM rounds.
        seed: The key of the samples.
        clean: (M, C, H, W) clean images.
        device: Where to compute.
        callback: Called as callback(rounds done, rounds in all).

    References:
        | Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024), arXiv 2405.13712
    """
    check(len(ids) > 1, "fit_gaussian", "ids", "to name 2 observations or more", len(ids))
    shape = observations.shape
    rank = usual_rank(len(ids), math.prod(shape)) if rank is None else rank
    zero = torch.zeros(1, *shape, device=device)
    known = zero[:0] if clean is None else clean.to(zero)
    spectrum = natural_spectrum(*shape[1:], zero.device).to(zero)
    prior = GaussianPrior(zero[0], zero, torch.full_like(zero[0], START), spectrum)
    for k in range(rounds):
        key = random.derive(seed, "gaussian", k)
        samples = [prior.posterior(observations, part, seed=key) for part in prior.batches(ids)]
        prior = GaussianPrior.fit(torch.cat((*samples, known)), rank)
        if callback is not None:
            callback(k + 1, rounds)
    return prior
