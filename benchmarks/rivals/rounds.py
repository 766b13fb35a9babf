"""EMDiffusion's alternation as emfast's demo ran it before the continuous schedule: seven rounds, M-steps of 250 steps.

Reference: Bai, Wang, Chen, Sun, "An Expectation-Maximization Algorithm for Training Clean Diffusion Models from
Corrupted Observations", 2024, arXiv 2407.01014.

Faithful in the protocol: an initial model of the clean images, E-steps by the model of the round before, M-steps with a
fresh optimizer, noise prediction at uniform times. Unlike the publication its E-step is the task's sampler of the demo,
warm-started, in the place of DPS with 1,000 steps, and no round begins from scratch: that is to its advantage here.
"""

from typing import Any

from rivals import e_step, training

TASKS = None  # all
SETTINGS: dict[str, Any] = {
    "schedule": "rounds",
    "rounds": 7,
    "gaussian": {"always": False},
    "network": {"prediction": "eps"},
    "e_step": e_step(warm_start=3.0),
    "m_step": training(),
}
