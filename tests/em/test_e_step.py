"""The E-step: what a sample depends on, and what happens to one that diverges."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from contracts import Gaussian

from emfast.config import EvaluationConfig
from emfast.data import Images, save_observations
from emfast.data.store import Store
from emfast.diffusion import VPSchedule
from emfast.dispatch import backend
from emfast.em import Observations, e_step
from emfast.em.e_step import reconstruct
from emfast.em.evaluation import Evaluator
from emfast.em.filling import Writer, pad
from emfast.em.initialisation import fit_gaussian
from emfast.operators import Downsample, GaussianBlur, Identity, Mask, MotionBlur, Operator
from emfast.samplers import DPS, MMPS, Sampler

IDS = torch.tensor([3, 0, 9, 5, 7, 1, 2])


class Model(torch.nn.Module):
    """The Gaussian denoiser in float32, with a parameter to have a device."""

    def __init__(self):
        super().__init__()
        self.schedule = VPSchedule.linear()
        self.inner = Gaussian(self.schedule).denoiser
        self.anchor = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, t):
        return self.inner(x.double(), t).float()


def observations():
    images = torch.rand(10, *Gaussian.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Observations(Mask(missing=0.4), sigma=0.1, images=Images(images), seed=5)


def new_store(folder, shard_size=3):
    return Store(folder, count=len(IDS), shard_size=shard_size, identity={"round": 1})


def test_samples_do_not_depend_on_batches_shards_order_or_processes(tmp_path):
    model, data = Model(), observations()
    sampler = DPS(steps=8)
    whole = reconstruct(sampler, model, data, IDS, seed=2)
    calls = []
    for name, batch, size in (("a", 1, 3), ("b", 2, 7), ("c", 64, 2)):
        store = new_store(tmp_path / name, size)
        e_step(sampler, model, data, IDS, store, batch_size=batch, seed=2, callback=lambda *c: calls.append(c))
        torch.testing.assert_close(store.load("images"), whole, rtol=1e-5, atol=1e-5)
        assert torch.equal(store.load("ids"), IDS)
    assert calls[-1][0] == calls[-1][1]
    store = new_store(tmp_path / "d", 2)
    for index, *_ in store.shards:
        if index % 2 == 0:  # what the other of two processes would do
            part = slice(2 * index, 2 * index + 2)
            shard = {"images": whole[part], "ids": IDS[part], "seconds": torch.zeros(len(IDS[part]))}
            store.write(index, shard)
    e_step(sampler, model, data, IDS, store, seed=2)
    torch.testing.assert_close(store.load("images"), whole, rtol=1e-5, atol=1e-5)


def test_a_partial_batch_is_filled_for_a_gpu():
    assert pad(IDS[:2], 4).tolist() == [3, 0, 0, 0]
    assert torch.equal(pad(IDS, 7), IDS)


@pytest.mark.parametrize(("batch", "shard"), [(5, 2), (3, 5), (64, 1), (2, 2)])
def test_batches_need_not_fit_the_shards(batch, shard, tmp_path, monkeypatch):
    sizes = []

    def draw(sampler, denoiser, observations, ids, **rest):
        sizes.append(len(ids))
        return ids.float().reshape(-1, 1, 1, 1)

    monkeypatch.setitem(e_step.__globals__, "reconstruct", draw)
    store = new_store(tmp_path, shard)
    e_step(DPS(steps=2), Model(), observations(), IDS, store, batch_size=batch)
    assert len(sizes) == -(-len(IDS) // batch)  # at most one of them is not full
    assert torch.equal(store.load("images").flatten(), IDS.float())
    assert torch.equal(store.load("ids"), IDS)


def test_a_batch_without_memory_is_halved(tmp_path, monkeypatch):
    sizes, calls = [], []

    def draw(sampler, denoiser, observations, ids, *, callback, **rest):
        sizes.append(len(ids))
        if len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        callback(1, 1)
        return ids.float().reshape(-1, 1, 1, 1)

    monkeypatch.setitem(e_step.__globals__, "reconstruct", draw)
    store = new_store(tmp_path)
    with pytest.warns(UserWarning, match="out of memory, it goes on with batches of"):
        e_step(DPS(steps=1), Model(), observations(), IDS, store, batch_size=5, callback=lambda *c: calls.append(c))
    assert sizes == [5, 2, 2, 2, 1]
    assert calls == [(2, 7), (4, 7), (6, 7), (7, 7)]
    assert torch.equal(store.load("images").flatten(), IDS.float())


def test_on_a_gpu_shards_are_written_beside_the_next_ones_sampling(tmp_path, monkeypatch):
    store, images = new_store(tmp_path), torch.randn(len(IDS), *Gaussian.shape)
    made = []
    with Writer(store, torch.device("cuda"), made.append) as writer:
        for index, *bounds in store.shards:
            part = slice(*bounds)
            shard = {"images": images[part], "ids": IDS[part], "seconds": torch.zeros(len(IDS[part]))}
            writer.write(index, shard)
    assert torch.equal(store.load("images"), images)
    assert made == [0, 1, 2]
    monkeypatch.setattr(store, "write", None)
    with pytest.raises(TypeError), Writer(store, torch.device("cuda"), made.append) as writer:
        writer.write(0, {})


@dataclass(frozen=True)
class Unlucky(Sampler):
    """Diverges for id 9: with the first key only, or always."""

    key: int
    always: bool = False
    steps: int = 1

    def __call__(self, denoiser, y, operator, *, ids, seed, **rest):
        x = ids.float().reshape(-1, 1, 1, 1).expand(y.shape).clone()
        if self.always or seed == self.key:
            x[ids == 9] = torch.nan
        return x


def test_a_diverged_sample_is_drawn_once_more():
    x = reconstruct(Unlucky(key=2), Model(), observations(), IDS, seed=2)
    assert torch.equal(x[:, 0, 0, 0], IDS.float())


def test_a_sample_that_diverges_twice_is_named():
    with pytest.raises(RuntimeError, match=r"for observations \[9\]. Lower"):
        reconstruct(Unlucky(key=2, always=True), Model(), observations(), IDS, seed=2)


def test_observations_are_fixed():
    a, b = observations(), observations()
    assert torch.equal(a.read(IDS), b.read(IDS))
    assert torch.equal(a.read(IDS)[2:3], a.read(IDS[2:3]))
    assert a.fingerprint == b.fingerprint
    other = Observations(Mask(missing=0.4, seed=1), sigma=0.1, images=a.images, seed=5)
    assert other.operator_fingerprint != a.operator_fingerprint


def test_fingerprints_do_not_depend_on_rounding():
    """A laptop without our kernels may join the run of a node that has them."""
    images = Images(torch.rand(4, 1, 16, 16))
    for operator in (Mask(missing=0.4), GaussianBlur(size=9), MotionBlur(size=5), Downsample(2)):
        known = Observations(operator, sigma=0.1, images=images, seed=5)
        with backend("reference"):
            same = Observations(operator, sigma=0.1, images=images, seed=5)
            assert (same.fingerprint, same.operator_fingerprint) == (known.fingerprint, known.operator_fingerprint)


def test_given_observations_bring_their_masks():
    a = observations()
    ids = torch.arange(10)
    masks = a.operator.parameters(ids, Gaussian.shape)
    b = Observations(Mask(), sigma=0.1, y=a.read(ids), given=masks)
    assert torch.equal(b.read(IDS), a.read(IDS))
    assert torch.equal(b.operator.parameters(IDS, Gaussian.shape)["mask"], masks["mask"][IDS])
    assert b.truth(IDS) is None


@pytest.mark.parametrize("value", [-1.0, torch.nan, torch.inf])
def test_unobserved_values_are_not_read(value, tmp_path):
    """In a file, through the reconstructions, their misfit and the Gaussian that EM begins with."""
    a, ids, path = observations(), torch.arange(10), tmp_path / "y.npz"
    mask = a.operator.parameters(ids, Gaussian.shape)["mask"]
    np.savez(path, y=torch.where(mask == 1, a.read(ids), value).numpy(), mask=mask.numpy())
    b = Observations.from_file(path, Mask(), sigma=0.1)
    assert torch.equal(b.read(IDS), a.read(IDS))
    found = [reconstruct(MMPS(steps=3), Model(), data, IDS, seed=2) for data in (a, b)]
    assert torch.equal(*found)
    evaluator = Evaluator(EvaluationConfig(), None, Gaussian.shape)
    misfits = [evaluator.reconstructions(found[0], IDS, data)["misfit"] for data in (a, b)]
    assert misfits[0] == misfits[1]
    first, second = (fit_gaussian(data, ids, rank=2, rounds=2) for data in (a, b))
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.diagonal, second.diagonal)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_observed_values_must_be_finite(value, tmp_path):
    a, ids, path = observations(), torch.arange(10), tmp_path / "y.npz"
    y, mask = a.read(ids), a.operator.parameters(ids, Gaussian.shape)["mask"]
    y[4] = torch.where(mask[4] == 1, value, y[4])
    np.savez(path, y=y.numpy(), mask=mask.numpy())
    with pytest.raises(ValueError, match=r"y.npz:y to be finite wherever .* got NaN or inf in row 4\."):
        Observations.from_file(path, Mask())
    assert len(Observations.from_file(path, Mask(), limit=4)) == 4


class Camera(Operator):
    """A user's operator, which gives numbers of counts."""

    def apply(self, x, parameters):
        return 127.5 * x

    adjoint = apply


UNIT_GAIN = {
    "mask": Mask(missing=0.6),
    "identity": Identity(),
    "blur": GaussianBlur(size=3),
    "shake": MotionBlur(size=3),
    "downsample": Downsample(2),
}


def pixels():
    """Images in [-1, 1] with 12 x 12 pixels, most of them at the ends."""
    return torch.randn(6, 1, 12, 12, generator=torch.Generator().manual_seed(0)).mul(2).clamp(-1, 1)


@pytest.mark.parametrize("operator", UNIT_GAIN.values(), ids=UNIT_GAIN)
@pytest.mark.parametrize("sigma", [0.0, 0.4, 5.0])
def test_observations_in_other_units_are_refused(operator, sigma, tmp_path):
    path = tmp_path / "y.npz"
    drawn = Mask | MotionBlur
    own = operator.parameters(torch.arange(6), (1, 12, 12)) if isinstance(operator, drawn) else {}
    for largest in (255, 65535):
        scale = largest / 2
        y = operator.observe(scale * (pixels() + 1), scale * min(sigma, 0.4))
        save_observations(path, y, own)
        for stated in (min(sigma, 0.4), min(scale * min(sigma, 0.4), 1000.0)):
            with pytest.raises(ValueError, match=r"y.npz:y to hold floats in \[-1, 1\].*Scale y and sigma") as error:
                Observations.from_file(path, operator, sigma=stated)
            assert "\n" not in str(error.value)
    save_observations(path, operator.observe(1.5 * pixels(), sigma), own)
    for stated in (sigma, 0.8 * sigma):
        assert len(Observations.from_file(path, operator, sigma=stated)) == 6


@pytest.mark.parametrize("operator", UNIT_GAIN.values(), ids=UNIT_GAIN)
@pytest.mark.parametrize("sigma", [0.0, 0.05])
def test_many_observations_in_0_to_1_are_refused(operator, sigma):
    """As torchvision's ToTensor gives them; a few may show bright things."""
    ids, x = torch.arange(20), torch.cat([pixels()] * 4)[:20]
    own = operator.parameters(ids, (1, 12, 12)) if isinstance(operator, Mask | MotionBlur) else None
    Observations(operator, y=operator.observe(x, sigma, ids=ids), given=own, sigma=sigma)
    y = operator.observe((x + 1) / 2, sigma, ids=ids)
    with pytest.raises(ValueError, match=r"y to hold floats in \[-1, 1\] .* from \[0, 1\]\)"):
        Observations(operator, y=y, given=own, sigma=sigma)
    Observations(operator, y=y[:8], given=own and {name: value[:8] for name, value in own.items()}, sigma=sigma)


def test_an_operator_that_changes_the_range_is_not_asked_for_it():
    y = 127.5 * (pixels() + 1)
    Observations(Camera(), y=y)
    kernel = torch.full((3, 3), 300.0)
    Observations(MotionBlur(kernel=kernel), y=y)
    Observations(MotionBlur(size=3), y=y, given={"kernel": kernel.expand(6, 1, 3, 3)})
    with pytest.raises(ValueError, match=r"y to hold floats in \[-0.5, 0.5\]"):
        Observations(MotionBlur(kernel=kernel / 5400), y=y)


def test_an_operator_that_does_not_fit_the_data_is_found_at_once():
    images = Images(torch.zeros(4, 1, 5, 5))
    with pytest.raises(ValueError, match="a row for every observation"):
        Observations(Mask(mask=torch.ones(3, 1, 5, 5)), images=images)
