"""Observations in files with the parameters of their operator."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from emfast.data import load_observations, save_observations
from emfast.data.arrays import ArrayFile
from emfast.data.observations import open_observations

KINDS = ["npz", "safetensors", "h5"]


def observations() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    y = 3 * torch.randn(5, 3, 4, 6, generator=generator)
    mask = torch.rand(5, 1, 4, 6, generator=generator) < 0.5
    return y, {"mask": mask, "kernel": torch.rand(5, 3, 3, generator=generator), "file": torch.arange(5)}


@pytest.fixture(params=KINDS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "h5":
        pytest.importorskip("h5py", reason="h5py is not installed")
    return tmp_path / f"y.{request.param}"


def test_round_trip(path: Path) -> None:
    y, parameters = observations()
    save_observations(path, y, parameters)
    images, found = load_observations(path)
    assert torch.equal(images[:], y)
    assert found.keys() == parameters.keys()
    for name, tensor in parameters.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    save_observations(path, y.double())
    images, found = load_observations(path)
    assert torch.equal(images[:], y)
    assert found == {}
    assert len(list(path.parent.iterdir())) == 1


def test_observations_that_are_no_images(path: Path) -> None:
    for shape in ((5, 7), (5, 4, 6), (5, 2, 3, 4, 6)):
        save_observations(path, torch.ones(shape))
        assert load_observations(path)[0].shape == shape


def test_the_content_tells_the_format(path: Path) -> None:
    y, parameters = observations()
    save_observations(path, y, parameters)
    other = path.rename(path.with_suffix(".DATA"))
    assert torch.equal(load_observations(other)[0], y)
    save_observations(path.with_suffix(path.suffix.upper()), y)
    assert torch.equal(load_observations(path.with_suffix(path.suffix.upper()))[0], y)


def test_what_saving_refuses(path: Path) -> None:
    y, parameters = observations()
    with pytest.raises(TypeError, match=r"save_observations: expected y to be float, in data units, got .*uint8"):
        save_observations(path, y.to(torch.uint8))
    with pytest.raises(ValueError, match="expected mask to have one row for each of the 5 observations"):
        save_observations(path, y, {"mask": parameters["mask"][:4]})
    with pytest.raises(ValueError, match=r"expected y of shape \(N, C, H, W\), or \(N, ...\) as the operator"):
        save_observations(path, y[0, 0, 0])
    with pytest.raises(TypeError, match=r"y to be float, .*complex64. Store real and imaginary parts as channels"):
        save_observations(path, torch.complex(y, y))
    y[3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="expected y to be finite, got NaN or inf in row 3"):
        save_observations(path, y)
    with pytest.raises(ValueError, match=r"expected path to end in one of .npz, .safetensors, .h5, .hdf5"):
        save_observations(path.with_suffix(".txt"), y)
    with pytest.raises(ValueError, match="without the name y"):
        save_observations(path, y, {"y": y})
    assert list(path.parent.iterdir()) == []


def test_what_loading_refuses(tmp_path: Path) -> None:
    path = tmp_path / "y.npz"
    with pytest.raises(ValueError, match=r"load_observations: expected .*y.npz to exist"):
        load_observations(path)
    y, _ = observations()
    np.save(tmp_path / "y.npy", y.numpy())
    with pytest.raises(ValueError, match=r"y.npy to hold an array y, got none\. Name the observations y"):
        load_observations(tmp_path / "y.npy")
    np.savez(path, x=y.numpy(), mask=np.ones(5))
    with pytest.raises(
        ValueError, match=r"to hold an array y, got none\. Name the observations y; the file has mask, x"
    ):
        load_observations(path)
    np.savez(path, y=y.numpy(), sigma=np.float32(0.1))
    with pytest.raises(ValueError, match="expected sigma to have one row for each of the 5 observations"):
        load_observations(path)
    np.savez(path, y=y.numpy(), name=np.array(["a"] * 5))
    with pytest.raises(TypeError, match=r"y.npz:name to hold numbers"):
        load_observations(path)
    np.savez(path, y=y.numpy(), gain=np.full(5, np.nan))
    with pytest.raises(ValueError, match="expected gain to be finite, got NaN or inf in row 0"):
        load_observations(path)
    np.savez(path, y=(y * 10).numpy().astype(np.uint8))
    with pytest.raises(TypeError, match="expected y to be float"):
        load_observations(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"y.npz to be a whole array file"):
        load_observations(path)


def test_a_file_larger_than_the_memory_is_opened(tmp_path: Path) -> None:
    """Of holes alone, on a file system that has them: nothing may map it to be written to, nor read it whole."""
    rows = 4 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (4 * 3 * 64 * 64)
    shapes, stop = {"y": (rows, 3, 64, 64), "level": (rows, 1)}, 0
    header: dict[str, object] = {}
    for name, shape in shapes.items():
        start, stop = stop, stop + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, stop]}
    text = json.dumps(header).encode()
    path = tmp_path / "y.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        try:
            file.truncate(8 + len(text) + stop)
        except OSError:
            pytest.skip("this file system holds no such file")
    y, parameters = open_observations(path)
    assert y[rows - 2 :].shape == (2, 3, 64, 64)
    assert ArrayFile(path).read("level").shape == parameters["level"].shape == (rows, 1)
