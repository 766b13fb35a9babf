"""EMDiffusion's own protocol: DPS with 1,000 steps from pure noise, its scale by the data misfit, from-scratch rounds.

Reference: Bai, Wang, Chen, Sun, "An Expectation-Maximization Algorithm for Training Clean Diffusion Models from
Corrupted Observations", 2024, arXiv 2407.01014.

Faithful in sampler, scales, the rule that ends the warm-started rounds, the from-scratch rounds and noise prediction;
the residual norm is that of each image, not of the batch. Network, data and the M-steps' lengths are the task's.
"""

from typing import Any

from emfast.samplers import DPS
from rivals import e_step, training

TASKS = None  # all
SETTINGS: dict[str, Any] = {
    "schedule": "rounds",
    "rounds": 7,
    "final_rounds": 3,
    "switch_scale": 0.1,
    "gaussian": {"always": False},
    "network": {"prediction": "eps"},
    "sampler": DPS(steps=1000),
    "e_step": e_step(scales=[0.3, 0.5, 1.0, 2.0, 4.0, 8.0]),
    "m_step": training(final_steps=1000),
}
