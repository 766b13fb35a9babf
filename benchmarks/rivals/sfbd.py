"""SFBD: a model of clean images denoises all observations by its reverse process, and is trained on the results.

Reference: Lu, Wu, Yu, "Stochastic Forward-Backward Deconvolution: Training Diffusion Models with Finite Noisy
Datasets", 2025, arXiv 2502.05446.

Faithful in the start on a few clean images, the backward sampling from the noise level of the observations and the
fine-tuning in turn. Network, data and the lengths of the trainings are the task's.
"""

from typing import Any

from emfast.samplers import ReverseFromObservation
from rivals import e_step, training

TASKS = ("noise",)
SETTINGS: dict[str, Any] = {
    "schedule": "rounds",
    "rounds": 7,
    "gaussian": {"always": False},
    "sampler": ReverseFromObservation(steps=20),
    "e_step": e_step(),
    "m_step": training(noise_levels="log-normal"),
}
