"""The loop that every posterior sampler shares; a sampler file holds one paper's step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from emfast import random
from emfast._check import check, check_ids, check_seed, check_sigma
from emfast.diffusion import Denoiser, Schedule
from emfast.graph import graphed
from emfast.operators import Operator, as_operator
from emfast.operators.base import default_ids, single_id
from emfast.operators.linear import Function
from emfast.samplers import sides
from emfast.samplers.frozen import frozen
from emfast.samplers.problem import Problem, transitions
from emfast.samplers.settings import check_settings

Callback = Callable[[int, int], None]


class Sampler:
    """A posterior sampler: hyper-parameters only, no state.

    A subclass gives `estimate`, from which the loop makes its steps, or a `step` of its own. A step has static shapes,
    reads its time through the step counter k (a 0-dimensional tensor on the device), takes its noise from
    Philox(seed, id, k), and never waits for the device.

    Its methods take:
        schedule: The noise schedule of the prior.
        sigma: The standard deviation of the measurement noise, in data units.
        problem: The observations and all else that a step reads.
        x_t: (B, C, H, W) the images at the time of the step.
        previous: (B, C, H, W) the estimate of the step before.
        k: The number of the step, 0-dimensional int64 on the device.
    """

    begins_at_noise: ClassVar[bool] = True  # or at the observation
    steps: int
    order: int = 1  # 2: the estimate is extrapolated from the step before, at no cost
    eta: float = 0.0
    zeta: float | None = None  # the share of fresh noise, in the place of eta

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def evaluations(self) -> int:
        """Network evaluations per image; a backward pass to the input counts as one."""
        return self.steps

    def times(self, schedule: Schedule, sigma: float) -> Tensor:
        """Returns the (n,) decreasing times to visit."""
        return schedule.times_by_noise(self.steps)

    def initial(self, problem: Problem) -> Tensor:
        """Returns x at the first time: pure noise, as the schedule has it there."""
        like = problem.operator.as_image(problem.y, problem.parameters)
        first = problem.coefficients(torch.zeros((), dtype=torch.int64, device=like.device), like)
        return first.sigma_t * problem.noise(random.Stream.START, 0, like)

    def estimate(self, problem: Problem, x_t: Tensor, k: Tensor) -> Tensor:
        """Returns the estimate of x_0 given x_t and y."""
        fix = "estimate(problem, x_t, k) or step(problem, x_t, previous, k)"
        raise NotImplementedError(f"{type(self).__name__}: expected a method {fix}, got none.")

    def step(self, problem: Problem, x_t: Tensor, previous: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        r"""Returns x_s and the estimate of x_0, from x_t and the estimate of the step before.

        Of second order where the sampler asks for it. With few steps that is what keeps the variance of the samples:
        the estimate changes along a step, and is taken where it stands in the middle of it.

        .. math:: x_s = c_x x_t + c_0 (\hat x_0 + \mathrm{slope} (\hat x_0 - \hat x_0')) + \mathrm{std} \, z
        """
        x_0 = self.estimate(problem, x_t, k)
        check(isinstance(x_0, Tensor), type(self).__name__, "estimate", "to return a tensor", x_0, error=TypeError)
        if self.order == 1:
            return problem.update(k, x_t, x_0), x_0
        slope = problem.coefficients(k, x_t).slope
        return problem.update(k, x_t, torch.lerp(x_0, previous, -slope)), x_0

    @property
    def owner_of_steps(self) -> Sampler:
        """The sampler that makes the steps; the graph of a step is kept for it, whatever wraps it."""
        return self

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        y: Tensor,
        operator: Operator | Function,
        *,
        sigma: float = 0.0,
        ids: Tensor | None = None,
        seed: int = 0,
        callback: Callback | None = None,
    ) -> Tensor:
        """Returns one sample of p(x | y) for every observation, (B, C, H, W), dtype of y.

        Arguments:
            denoiser: The prior.
            y: (B, ...) observations, in data units; what they hold outside the range of the operator, such as NaN at
                unobserved pixels, changes nothing. Of one observation without its batch dimension one image is
                returned, (C, H, W).
            operator: The operator that made them; or a function, which becomes an `operators.Linear`, linear and of
                image batches to observations of the same size.
            sigma: The standard deviation of their noise, in data units.
            ids: (B,) their stable ids: the operator's parameters and the sampler's noise belong to them. 0 ... B-1 by
                default.
            seed: The key of the sampler's noise: the same (seed, id) gives the same sample, whatever the batch.
            callback: Called as callback(steps done, steps in all).

        Raises:
            TypeError: If an argument is of another kind.
            ValueError: If y and the operator, or the images and the network, do not fit together.
        """
        name, fix = type(self).__name__, "Give Denoiser(network, schedule), or Denoiser.from_pretrained(pipeline)"
        good = isinstance(denoiser, nn.Module) and hasattr(denoiser, "schedule")
        check(good, name, "denoiser", "to be an emfast Denoiser", type(denoiser), fix, TypeError)
        good = isinstance(y, Tensor) and y.is_floating_point()
        check(good, name, "y", "to be a floating-point tensor", y, error=TypeError)
        check_sigma(sigma, name)
        seed = check_seed(seed, name)
        check_ids(ids, name)
        operator = as_operator(operator, y, name)
        single = operator.is_single(y)
        good = single or y.ndim == 4 or not operator.observes_images
        check(good, name, "y", "to be images (B, C, H, W), or one (C, H, W)", tuple(y.shape))
        if single:
            y, ids = y[None], single_id(ids)
        check(len(y) > 0, name, "y", "to hold at least one observation", tuple(y.shape))
        with frozen(denoiser):
            x = self._sample(denoiser, y, operator, sigma, default_ids(y, ids), seed, callback)
        return x[0] if single else x

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
        """Makes all steps."""
        table = transitions(denoiser.schedule, self.times(denoiser.schedule, sigma), self.eta, self.zeta).to(y.device)
        parameters = operator.parameters(ids, tuple(y.shape[1:]))
        y = operator.project(y, parameters)
        problem = Problem(denoiser, y, operator, parameters, sigma, ids, random.derive(seed, "sampler"), table)
        x = self.initial(problem)
        key = (self.owner_of_steps, denoiser, operator, sigma, seed)
        step = graphed(partial(self.owner_of_steps._step, problem), *key, network=denoiser)
        k = torch.zeros((), dtype=torch.int64, device=y.device)
        previous = torch.zeros_like(x)
        for done in range(1, len(table) + 1):
            try:
                x, previous = step(x, previous, k, y, ids, table, *parameters.values())
            except sides.REFUSALS as error:
                sides.explain_refused_images(error, denoiser, x, table[0, 0], type(self.owner_of_steps).__name__)
            k = k + 1
            if callback is not None:
                callback(done, len(table))
        return x.clone() if x.is_cuda else x  # a graph writes its output again

    def _step(
        self, problem: Problem, x_t: Tensor, previous: Tensor, k: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The step of a problem with other tensors in the place of its own."""
        y, ids, table, *values = tensors
        parameters = dict(zip(problem.parameters, values, strict=True))
        x_s, x_0 = self.step(replace(problem, y=y, ids=ids, table=table, parameters=parameters), x_t, previous, k)
        same = isinstance(x_s, Tensor) and isinstance(x_0, Tensor) and x_s.shape == x_0.shape == x_t.shape
        check(same, type(self).__name__, "step", f"to return two tensors {tuple(x_t.shape)}", x_0, error=TypeError)
        return x_s, x_0
