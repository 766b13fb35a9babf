"""A posterior sampler that is learned: its network is shown the observation, and the operator is never asked."""

from dataclasses import dataclass

from torch import Tensor

from emfast.samplers.base import Sampler
from emfast.samplers.problem import Problem, clip_values


@dataclass(frozen=True)
class Conditional(Sampler):
    r"""Reverse diffusion by a network that was trained on pairs of an image and a fresh observation of it.

    Such a network estimates the mean given both, so that plain steps draw from the posterior, by forward passes alone:

    .. math:: \hat x_0(x_t, t, y) \approx E[x_0 | x_t, y]

    What it takes of the operator is `simulate` in the training, and `condition` here, which shows y to the network. For
    operators that can only be simulated; where there is an A, `MMPS` is better with fewer training steps.

    Arguments:
        steps: The number of network evaluations.
        order: 2 extrapolates the estimate from the step before, 1 does not.
        clip: Clips the estimates to [-1, 1], the range of images.
        eta: 1 for ancestral steps, 0 for DDIM steps.

    References:
        | Palette: Image-to-Image Diffusion Models (Saharia et al., 2021), arXiv 2111.05826
        | Conditional Image Generation with Score-Based Diffusion Models (Batzolis et al., 2021), arXiv 2111.13606
    """

    steps: int = 20
    order: int = 2
    clip: bool = True
    eta: float = 1.0

    def estimate(self, problem: Problem, x_t: Tensor, k: Tensor) -> Tensor:
        """Returns x0-hat given x_t and y."""
        condition = problem.operator.condition(problem.y, problem.parameters)
        return clip_values(problem.denoise(x_t, problem.coefficients(k, x_t), condition=condition), self.clip)
