from functools import partial

import pytest
import torch
from contracts import check_op, draw, require

from emfast import random
from emfast.diffusion import VPSchedule
from emfast.dispatch import backend as forced
from emfast.ops import sampler_update
from emfast.samplers.problem import transitions

IDS = torch.tensor([5, 2**40 + 3, 0])
TABLE = transitions(VPSchedule.linear(), torch.tensor([900.0, 500.0, 20.0, 1.0]), 1.0)  # the last step has no noise
SIZES = [(2, 3, 5, 7), (1, 1, 1, 1), (3, 1, 32, 32), (1, 3, 80, 80), (2, 9)]
SAMPLES = [{"x_t": size, "x_0": size, "guidance": size} for size in SIZES] + [{"x_t": SIZES[0], "x_0": SIZES[0]}]


def ours(x_t, x_0, guidance=None, k=1):
    """The op."""
    table, k = TABLE.to(x_t.device), torch.tensor(k, device=x_t.device)
    return sampler_update(x_t, x_0, guidance, table, k, ids=IDS[: len(x_t)].to(x_t.device), seed=2**63 + 1)


def native(x_t, x_0, guidance=None, k=1):
    """The same in native torch, with the noise of the reference."""
    c_x, c_0, std = TABLE[k, 3:6].to(x_t)
    step, seed = torch.tensor(k), random.signed(2**63 + 1, "test")
    z = random.reference(x_t.shape[1:], IDS[: len(x_t)], step, seed).to(x_t)
    x_s = c_x * x_t + c_0 * x_0 + std * z
    return x_s if guidance is None else x_s + guidance


@pytest.mark.parametrize("k", [1, 3])
def test_contract(k, backend, device):
    check_op(partial(ours, k=k), partial(native, k=k), SAMPLES, backend=backend, device=device)


def test_images_do_not_mix(backend, device):
    require("sampler_update", backend, device)
    arguments = draw(SAMPLES[2], torch.float32, "contiguous", device)
    with forced(backend):
        whole, first = ours(**arguments), ours(**{key: value[:1] for key, value in arguments.items()})
    assert torch.equal(whole[:1], first)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"x_0": torch.ones(2, 3)}, ValueError, r"expected x_0 of the shape \(2, 4\) of x_t"),
        ({"x_0": torch.ones(2, 4).double()}, TypeError, r"expected x_0 of dtype torch\.float32"),
        ({"table": torch.ones(5, 8)}, ValueError, r"expected table of shape \(n, 9\), float64, got \(5, 8\) float32"),
        ({"k": torch.tensor([1])}, ValueError, "expected k to be a 0-dimensional int64 tensor"),
        ({"ids": torch.arange(3)}, ValueError, r"expected ids of shape \(2,\)"),
        ({"seed": -1}, ValueError, r"expected seed to be in \[0, 2\^64\)"),
    ],
)
def test_bad_arguments(change, error, sentence):
    x = torch.ones(2, 4)
    usual = {"x_t": x, "x_0": x, "guidance": None, "table": TABLE, "k": torch.tensor(0), "ids": IDS[:2], "seed": 0}
    with pytest.raises(error, match=sentence):
        sampler_update(**{**usual, **change})


def test_step_behind_the_table():
    x = torch.ones(2, 4)
    with pytest.raises(IndexError):
        sampler_update(x, x, None, TABLE, torch.tensor(4), ids=IDS[:2], seed=0)
