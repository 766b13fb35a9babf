"""DiEM: a Gaussian start, moment matching posterior sampling from pure noise, many rounds, a fresh optimizer in each.

Reference: Rozet, Andry, Lanusse, Louppe, "Learning Diffusion Priors from Observations by Expectation Maximization",
2024, arXiv 2405.13712.

Faithful in the Gaussian start without clean images, the sampler, E-steps from pure noise, log-normal noise levels and
networks that go on while optimizers do not. Here the network predicts v, where the publication preconditions it, and
MMPS takes as many steps as on the task's other rows. The saved rows are older than the spectrum of the first Gaussian
(`emfast/em/spectrum.py`), which the publication's has not either.
"""

from typing import Any

from rivals import e_step, training

TASKS = ("mask-60", "mask-85", "blur")
SETTINGS: dict[str, Any] = {
    "schedule": "rounds",
    "rounds": 12,
    "data": {"clean_count": 0},
    "e_step": e_step(),
    "m_step": training(initial_steps=125, steps=125, noise_levels="log-normal"),
}
