"""What a sampler draws is drawn once, and what its table holds is computed once."""

import pytest
import torch

from emfast import random
from emfast.diffusion import Denoiser, VPSchedule
from emfast.operators import Mask
from emfast.samplers import DAPS, DPS, MMPS, DiffPIR, PiGDM, Prior

STEPS = 4
Y = torch.zeros(2, 1, 4, 4)


class Counted(VPSchedule):
    """A schedule that counts how often it is asked."""

    asked = 0

    def alpha(self, t):
        self.asked += 1
        return super().alpha(t)


def denoiser():
    return Denoiser(lambda x, t: 0.1 * x, Counted.linear())


def test_no_noise_is_drawn_twice(monkeypatch):
    drawn, normal = [], random.normal

    def noted(shape, *, ids, seed, step=0):
        drawn.append((seed, int(step)))
        return normal(shape, ids=ids, seed=seed, step=step)

    monkeypatch.setattr(random, "normal", noted)
    DAPS(steps=STEPS)(denoiser(), Y, Mask(missing=0.5), sigma=0.1)
    assert len(set(drawn)) == len(drawn)
    own = [step for seed, step in drawn if seed == drawn[0][0]]
    streams = {random.Stream.START: 1, random.Stream.PRIOR: STEPS, random.Stream.MEASUREMENT: STEPS}
    assert sorted(own) == [STEPS * stream + k for stream, count in streams.items() for k in range(count)]
    assert all(step >= STEPS for step in own)  # the others belong to the fresh noise of the steps


@pytest.mark.parametrize("sampler", [DPS, MMPS, PiGDM, DiffPIR, Prior])
def test_the_levels_of_noise_are_computed_once(sampler):
    counts = []
    for steps in (STEPS, 2 * STEPS):
        model = denoiser()
        sampler(steps=steps)(model, Y, Mask(missing=0.5), sigma=0.1)
        counts.append(model.schedule.asked)
    assert counts[0] == counts[1]


def test_a_denoiser_with_a_forward_of_its_own():
    class Own(Denoiser):
        def forward(self, x_t, t):
            return super().forward(x_t, t) * 1.0

    own = Own(lambda x, t: 0.1 * x, VPSchedule.linear())
    expected = DPS(steps=STEPS)(denoiser(), Y, Mask(missing=0.5))
    assert torch.equal(DPS(steps=STEPS)(own, Y, Mask(missing=0.5)), expected)
