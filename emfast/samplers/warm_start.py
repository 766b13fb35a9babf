"""Sampling that begins at an earlier reconstruction of the same observation instead of at pure noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from emfast._check import check
from emfast.data.rows import Rows
from emfast.diffusion import Denoiser, Schedule
from emfast.operators import Operator
from emfast.random import Stream
from emfast.samplers.base import Callback, Sampler
from emfast.samplers.problem import Problem


@dataclass(frozen=True, eq=False)
class WarmStart(Sampler):
    r"""Another sampler's last steps, from the earlier reconstruction brought to an intermediate noise level.

    Between two rounds of EM the posterior of an observation changes little. The noise erases what a new model may see
    differently below its scale, and keeps the rest, so that the first steps need not be made again:

    .. math:: x_{t^*} = \alpha_{t^*} x' + \sigma_{t^*} z, \quad \sigma_{t^*} / \alpha_{t^*} = \mathrm{noise}

    Observations without an earlier reconstruction begin at pure noise.

    Arguments:
        sampler: The sampler whose steps are made; its spacing of the times stays. One that begins at pure noise: one
            that begins at the observation has no earlier steps to save, and reads the observation nowhere else.
        images: (N, C, H, W) the earlier reconstructions, on any device, or such rows in files.
        ids: (N,) their observations' ids, on any device.
        noise: The noise level, in data units, > 0.
    """

    sampler: Sampler
    images: Tensor | Rows
    ids: Tensor
    noise: float

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self.sampler).__name__
        check(self.sampler.begins_at_noise, "WarmStart", "sampler", "to begin at pure noise", name)
        shape = tuple(self.ids.shape)
        check(shape == (len(self.images),), "WarmStart", "ids", f"to have shape ({len(self.images)},)", shape)
        object.__setattr__(self, "ids", self.ids.cpu())  # they are searched there

    @property
    def evaluations(self) -> int:
        """Network evaluations per image without an earlier reconstruction."""
        return self.sampler.evaluations

    def evaluations_when_warm(self, schedule: Schedule, sigma: float) -> float:
        """Returns the network evaluations per image that begins at an earlier reconstruction."""
        cold = self.sampler.times(schedule, sigma)
        return self.sampler.evaluations * len(_times_below(cold, schedule, self.noise)) / len(cold)

    def earlier(self, ids: Tensor) -> Tensor:
        """Returns the earlier reconstructions of observations that have one, (B,) ids on the CPU."""
        return self.images[self._rows(ids)[0]]

    def known(self, ids: Tensor) -> Tensor:
        """Returns which of the observations have an earlier reconstruction, (B,) bool on the CPU."""
        return self._rows(ids.cpu())[1]

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        """The ids in order, and the row of each."""
        found: tuple[Tensor, Tensor] = self.ids.sort()
        return found

    def _rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the row of each id, and whether it has one."""
        known, rows = self._sorted
        if len(known) == 0:
            return torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        place = torch.searchsorted(known, ids).clamp_max(len(known) - 1)
        return rows[place], known[place] == ids

    def _sample(
        self,
        denoiser: Denoiser,
        y: Tensor,
        operator: Operator,
        sigma: float,
        ids: Tensor,
        seed: int,
        callback: Callback | None,
    ) -> Tensor:
        """Makes all steps: those that begin at an earlier reconstruction, and those that do not."""
        known = self.known(ids)
        parts: list[tuple[Tensor, Tensor, Sampler]] = []
        for warm, chosen in ((True, known), (False, ~known)):
            rows = full = chosen.nonzero()[:, 0]
            if len(rows) == 0:
                continue
            if y.is_cuda:  # one shape, one graph: a part of the batch is filled with its last observation again
                full = torch.cat((rows, rows[-1:].expand(len(y) - len(rows))))
            sampler: Sampler = self.sampler
            if warm:
                sampler = _FromEarlier(self.sampler, self.earlier(ids.cpu()[full]).to(y), self.noise)
            parts.append((rows.to(y.device), full.to(y.device), sampler))
        steps = [len(sampler.times(denoiser.schedule, sigma)) for *_, sampler in parts]
        x: Tensor | None = None
        for index, (rows, full, sampler) in enumerate(parts):

            def progress(done: int, of: int, before: int = sum(steps[:index])) -> None:
                if callback is not None:
                    callback(before + done, sum(steps))

            own = _of_rows(denoiser, full, len(y))
            part = sampler._sample(own, y[full], operator, sigma, ids[full], seed, progress)
            x = part.new_empty(len(y), *part.shape[1:]) if x is None else x
            x[rows] = part[: len(rows)]
        return y if x is None else x


@dataclass(frozen=True, eq=False)
class _FromEarlier(Sampler):
    """The steps of a sampler below a noise level, from given images."""

    sampler: Sampler
    images: Tensor
    noise: float

    @property
    def eta(self) -> float:  # type: ignore[override]
        return self.sampler.eta

    @property
    def zeta(self) -> float | None:  # type: ignore[override]
        """That of the sampler."""
        return self.sampler.zeta

    def times(self, schedule: Schedule, sigma: float) -> Tensor:
        return _times_below(self.sampler.times(schedule, sigma), schedule, self.noise)

    def initial(self, problem: Problem) -> Tensor:
        shape = tuple(problem.operator.as_image(problem.y, problem.parameters).shape[1:])
        found = tuple(self.images.shape[1:])
        check(found == shape, "WarmStart", "images", f"to have shape {shape}, that of the observed images", found)
        like = self.images
        first = problem.coefficients(torch.zeros((), dtype=torch.int64, device=like.device), like)
        return first.alpha_t * self.images + first.sigma_t * problem.noise(Stream.START, 0, like)

    @property
    def owner_of_steps(self) -> Sampler:
        return self.sampler


def _of_rows(denoiser: Denoiser, rows: Tensor, count: int) -> Denoiser:
    """Returns the denoiser of some images of a batch of so many: with their labels, where each image has one."""
    labels = denoiser.labels if isinstance(denoiser, Denoiser) else None
    if labels is None or len(labels) == 1:
        return denoiser
    check(len(labels) == count, "Denoiser", "labels", f"to be one for each of {count} images", tuple(labels.shape))
    if torch.equal(rows, torch.arange(count, device=rows.device)):
        return denoiser  # itself, for a graph may be kept for it
    return denoiser.labelled(labels[rows])


def _times_below(times: Tensor, schedule: Schedule, noise: float) -> Tensor:
    """Returns the times whose noise level is at most the given one, the last time at least."""
    low = schedule.sigma(times) <= noise * schedule.alpha(times)
    low[-1] = True
    return times[low]
