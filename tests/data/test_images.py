"""Images in memory, crop and resize, and the lazy imports."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emfast.data import Images, load
from emfast.data.resize import crop_and_resize


def pictures(count: int = 5, channels: int = 3, height: int = 6, width: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def test_units_and_shapes() -> None:
    tensor = pictures()
    tensor[0, 0, 0, :2] = torch.tensor([0, 255])
    images = Images(tensor)
    assert len(images) == 5
    assert images.shape == (3, 6, 8)
    assert images[:].dtype == torch.float32
    assert images[0][0, 0, :2].tolist() == [-1, 1]
    assert torch.equal(images[:], tensor.float() / 127.5 - 1)
    assert torch.equal(((images[:] + 1) * 127.5).round().to(torch.uint8), tensor)


@given(st.lists(st.integers(-5, 4), max_size=8))
def test_every_kind_of_ids(ids: list[int]) -> None:
    images = Images(pictures())
    expected = images[:][torch.tensor(ids, dtype=torch.long)]
    assert torch.equal(images[ids], expected)
    assert torch.equal(images[torch.tensor(ids, dtype=torch.long)], expected)
    if ids:
        assert torch.equal(images.subset(ids)[:], expected)
        assert torch.equal(images[ids[0]], expected[0])


def test_slices_and_iteration() -> None:
    images = Images(pictures())
    assert images[1:3].shape == (2, 3, 6, 8)
    assert torch.equal(torch.stack(list(images)), images[:])
    assert torch.equal(images.subset(slice(2, 4))[:], images[2:4])
    assert repr(images) == "Images(5 x (3, 6, 8), uint8)"


def test_float_storage_is_not_shared() -> None:
    tensor = torch.randn(3, 1, 4, 4)
    images = Images(tensor)
    batch = images[:]
    assert torch.equal(batch, tensor)
    batch += 1
    assert not torch.equal(images[:], batch)


def test_fingerprint() -> None:
    images = Images(pictures(1500))
    assert images.fingerprint == Images(pictures(1500)).fingerprint
    assert len(images.fingerprint) == 16
    changed = pictures(1500)
    changed[1499, 2, 5, 7] ^= 1
    others = [Images(changed), Images(pictures(1500).permute(0, 1, 3, 2)), Images(images[:]), images.subset([1, 0])]
    assert len({images.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert images.subset(slice(0, 3)).fingerprint == Images(pictures(1500)[:3]).fingerprint


def test_fingerprint_is_the_same_everywhere() -> None:
    assert Images(torch.arange(12, dtype=torch.uint8).reshape(1, 3, 2, 2)).fingerprint == "927f2cb9b3ae4bca"


def test_what_it_refuses() -> None:
    with pytest.raises(TypeError, match=r"Images: expected tensor to be uint8 or float32, got .*int64"):
        Images(torch.zeros(1, 1, 2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"of shape \(N, C, H, W\), got \(1, 2, 2\)"):
        Images(torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="at least one image"):
        Images(torch.zeros(0, 1, 2, 2))
    tensor = torch.zeros(3000, 1, 2, 2)
    tensor[2047, 0, 1, 1] = torch.inf
    with pytest.raises(ValueError, match="got NaN or inf in image 2047"):
        Images(tensor)


@pytest.mark.parametrize(("crop", "size"), [(4, None), (None, 4), (6, 3), (None, 12), (1, 1), (5, 5)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_resize_of_flat_images_is_flat(crop: int | None, size: int | None, dtype: torch.dtype) -> None:
    flat = torch.full((2, 3, 6, 9), 77, dtype=dtype)
    side = size or crop or 0
    result = crop_and_resize(flat, crop, size)
    assert result.shape == (2, 3, side, side)
    assert result.dtype == dtype
    assert (result - 77).abs().max() < 1e-4


def test_crop_takes_the_centre() -> None:
    ramp = torch.arange(54.0).reshape(1, 1, 6, 9)
    assert torch.equal(crop_and_resize(ramp, 2), ramp[:, :, 2:4, 3:5])
    assert torch.equal(crop_and_resize(ramp, None, 6), ramp[:, :, :, 1:7])
    assert torch.equal(crop_and_resize(ramp), ramp)
    with pytest.raises(ValueError, match="load: expected crop to fit in images of 6x9 pixels, got 7"):
        crop_and_resize(ramp, 7)


def test_reducing_has_no_aliases() -> None:
    stripes = torch.zeros(1, 1, 64, 64)
    stripes[..., ::2] = 1
    reduced = crop_and_resize(stripes, None, 16)[..., 2:-2]
    assert (reduced - 0.5).abs().max() < 0.02


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 14))
@settings(deadline=None, max_examples=30)
def test_resize_stays_in_range(height: int, width: int, size: int) -> None:
    images = pictures(2, 1, height, width)
    result = crop_and_resize(images, None, size)
    assert result.shape == (2, 1, size, size)
    assert images.min() <= result.min()
    assert result.max() <= images.max()


def test_the_sample() -> None:
    train, test = load("sample:train"), load("sample:test")
    assert (len(train), train.shape, len(test), test.shape) == (5000, (1, 28, 28), 500, (1, 28, 28))
    assert train.tensor.dtype == torch.uint8
    assert (train.fingerprint, test.fingerprint) == ("550fe6cfd4b6647e", "6ac9df5e0452a2c8")
    assert load("sample:train", size=16, limit=7)[:].shape == (7, 1, 16, 16)
    with pytest.raises(ValueError, match="expected source to be sample:train or sample:test, got sample:x"):
        load("sample:x")


def test_heavy_packages_are_imported_when_used() -> None:
    code = (
        "import sys, emfast.data, emfast.evaluation\n"
        "heavy = {'PIL', 'h5py', 'matplotlib', 'torchmetrics', 'lpips', 'torch_fidelity', 'diffusers'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
