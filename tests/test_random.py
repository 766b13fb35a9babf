"""Philox against the known answers of its authors, and the noise built on it."""

import numpy as np
import pytest
import torch

from emfast import random
from emfast.diffusion import Denoiser, VPSchedule
from emfast.operators import Identity, Mask, MotionBlur
from emfast.samplers import DPS, Prior

# Random123's known-answer file: counter, key -> words of philox4x32 with 10 rounds.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_known_answers(counter, key, words):
    found = random.philox(tuple(torch.tensor([c]) for c in counter), key[0] | key[1] << 32)
    assert tuple(int(w) for w in found) == words


def test_noise_belongs_to_the_id():
    ids = torch.tensor([5, 2**40 + 3, 0])
    whole = random.normal((3, 5, 7), ids=ids, seed=11, step=4)
    for row, index in enumerate(ids):
        alone = random.normal((3, 5, 7), ids=index[None], seed=11, step=torch.tensor(4))
        assert torch.equal(whole[row], alone[0])
    assert torch.equal(whole[:, 0, 0, :4], random.normal((4,), ids=ids, seed=11, step=4))


def test_every_coordinate_changes_the_noise():
    base = {"ids": torch.tensor([1]), "seed": 2, "step": 3}
    first = random.normal((64,), **base)
    for change in ({"ids": torch.tensor([2])}, {"seed": 3}, {"step": 4}, {"ids": torch.tensor([1 + 2**32])}):
        other = random.normal((64,), **{**base, **change})
        assert abs(float(torch.corrcoef(torch.cat((first, other)))[0, 1])) < 0.5


def test_moments():
    z = random.normal((1000,), ids=torch.arange(200), seed=0).double().flatten()
    u = random.uniform((1000,), ids=torch.arange(200), seed=0).double().flatten()
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - expected) < 5 * (variance / len(z)) ** 0.5
    assert abs(float(u.mean()) - 0.5) < 5 * (1 / 12 / len(u)) ** 0.5
    assert 0 <= float(u.min()) < 1e-4
    assert 1 - 1e-4 < float(u.max()) < 1


def test_derived_seeds_differ():
    seeds = {random.derive(s, "round", r, n) for s in (0, 1) for r in range(10) for n in ("a", "b")}
    assert len(seeds) == 40
    assert all(0 <= s < 2**64 for s in seeds)


X = torch.zeros(2, 1, 4, 4)
SEEDED = {
    "derive": lambda seed: random.derive(seed, "a"),
    "observe": lambda seed: Identity().observe(X, 0.1, seed=seed),
    "Mask": lambda seed: Mask(missing=0.5, seed=seed).observe(X),
    "MotionBlur": lambda seed: MotionBlur(3, seed=seed).observe(X),
    "DPS": lambda seed: DPS(steps=2)(DENOISER, X, Identity(), seed=seed),
    "sample": lambda seed: Prior(steps=2).sample(DENOISER, (1, 4, 4), ids=torch.arange(2), seed=seed),
}
DENOISER = Denoiser(lambda x, t: 0.1 * x, VPSchedule.linear())


@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_is_a_whole_number_of_whatever_kind(name):
    torch.testing.assert_close(SEEDED[name](np.int64(3)), SEEDED[name](3), rtol=0, atol=0)
    for wrong in (3.0, True, "3", None, torch.tensor(3), np.bool_(True)):
        with pytest.raises(TypeError, match=rf"^{name}: expected seed to be a whole number, got .*\. int\(seed\)"):
            SEEDED[name](wrong)


@pytest.mark.parametrize("draw", [random.normal, random.uniform])
def test_a_list_of_ids(draw):
    with pytest.raises(TypeError, match=rf"{draw.__name__}: expected ids to be a tensor, got list"):
        draw((1,), ids=[0, 1], seed=0)
    with pytest.raises(TypeError, match="sample: expected ids to be a tensor, got list"):
        Prior(steps=2).sample(DENOISER, (1, 4, 4), ids=[0, 1])


def test_seed_out_of_range():
    with pytest.raises(ValueError, match=r"expected seed to be in \[0, 2\^64\)"):
        random.normal((1,), ids=torch.tensor([0]), seed=-1)


@pytest.mark.parametrize("draw", [random.normal, random.uniform])
@pytest.mark.parametrize("ids", [torch.tensor([0.5, 1.5]), torch.tensor(3), torch.tensor([[1, 2]])])
def test_ids_that_are_no_row_of_whole_numbers_are_refused(draw, ids):
    with pytest.raises(ValueError, match=rf"^{draw.__name__}: expected ids to be \(B,\) whole numbers, got "):
        draw((2,), ids=ids, seed=1)
