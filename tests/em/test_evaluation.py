"""What is measured after a round: how its samples are made."""

import pytest
import torch

from emfast import random
from emfast.config import EvaluationConfig
from emfast.diffusion import Denoiser, VPSchedule
from emfast.em.evaluation import Evaluator
from emfast.samplers import Prior


@pytest.mark.parametrize("order", [1, 2])
def test_samples_are_of_the_order_that_is_asked_for(order):
    denoiser = Denoiser(torch.nn.Identity(), VPSchedule.linear())
    denoiser.network.forward = lambda x, t: x / 2
    denoiser.register_parameter("anchor", torch.nn.Parameter(torch.zeros(1)))  # its device
    config = EvaluationConfig(samples=4, steps=5, order=order, features="none")
    found, measured = Evaluator(config, None, (1, 4, 4)).samples(denoiser, 0)
    expected = [
        Prior(steps=5, order=k).sample(denoiser, (1, 4, 4), ids=torch.arange(4), seed=random.derive(0, "samples"))
        for k in (1, 2)
    ]
    assert measured["fd"] is None
    assert torch.equal(found, expected[order - 1])
    assert not torch.equal(*expected)
