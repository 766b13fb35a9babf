"""Readers: what they return, and the one sentence for what they cannot read."""

import gzip
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emfast._files import write_tensors
from emfast.data import load

h5py = pytest.importorskip("h5py", reason="h5py is not installed")
GENERATOR = np.random.default_rng(0)
BYTES = GENERATOR.integers(0, 256, (6, 3, 8, 10), dtype=np.uint8)
FLOATS = GENERATOR.uniform(-1, 1, (6, 1, 8, 8))


def write_idx(path: Path, array: np.ndarray) -> Path:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_hdf5(path: Path, **arrays: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def refused(source: object, pattern: str, kind: type[Exception] = ValueError, **options: int) -> None:
    with pytest.raises(kind, match=pattern) as error:
        load(str(source), **options)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert sentence.startswith(("load: expected ", "Images: expected ", "read_tensors: expected "))


@pytest.mark.parametrize("layout", ["chw", "hwc", "hw"])
@pytest.mark.parametrize("kind", ["npy", "npz", "h5", "safetensors"])
def test_layouts(tmp_path: Path, kind: str, layout: str) -> None:
    array = {"chw": BYTES, "hwc": BYTES.transpose(0, 2, 3, 1), "hw": BYTES[:, 0]}[layout]
    path = tmp_path / f"a.{kind}"
    if kind == "npy":
        np.save(path, array)
    elif kind == "npz":
        np.savez_compressed(path, x=array)
    elif kind == "h5":
        write_hdf5(path, x=array)
    else:
        write_tensors(path, {"x": torch.tensor(array)})
    expected = torch.tensor(BYTES[:, :1] if layout == "hw" else BYTES)
    assert torch.equal(load(path).tensor, expected)
    assert torch.equal(load(path, limit=2).tensor, expected[:2])
    assert load(path, crop=6, size=3).shape == (len(expected[0]), 3, 3)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
def test_floats_are_kept_in_data_units(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", FLOATS.astype(dtype))
    images = load(tmp_path / "a.npy")
    assert images.tensor.dtype == torch.float32
    assert torch.equal(images[:], torch.tensor(FLOATS.astype(dtype).astype("<f4")))


def test_floats_of_unknown_units_are_refused(tmp_path: Path) -> None:
    for scaled in ((FLOATS + 1) / 2, (FLOATS + 1) * 127.5, FLOATS * 3):
        np.save(tmp_path / "a.npy", scaled)
        refused(tmp_path / "a.npy", r"to hold floats in \[-1, 1\], got values from .* Scale the values")


def test_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, big=BYTES, names=np.array(["a"] * 6), labels=np.arange(6))
    refused(path, r"to hold one array or one called images, got 3 others\. Write a.npz:KEY with KEY one of big, labels")
    refused(f"{path}:x", r"to hold 'x', got no such array\. Write a.npz:KEY with KEY one of big, labels, names")
    assert torch.equal(load(f"{path}:big").tensor, torch.tensor(BYTES))
    refused(f"{path}:names", "to hold numbers, got dtype <U1", TypeError)
    refused(f"{path}:labels", r"of shape \(N, H, W\), .* got \(6,\) int64")
    np.savez(path, images=BYTES, labels=np.arange(6))
    assert len(load(path)) == 6
    nested = write_hdf5(tmp_path / "a.h5", **{"group/x": BYTES, "y": BYTES})
    assert torch.equal(load(f"{nested}:group/x").tensor, torch.tensor(BYTES))
    refused(nested, "KEY one of group/x, y")


def test_arrays_that_are_no_images(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, BYTES.astype(np.int32))
    refused(path, "to hold uint8 or float values, got .*int32. Convert it", TypeError)
    np.save(path, np.zeros((2, 8, 8, 8), np.uint8))
    refused(path, "channel axis smaller than its sides")
    np.save(path, np.zeros((0, 3, 8, 8), np.uint8))
    refused(path, "at least one image")
    bad = FLOATS.copy()
    bad[4, 0, 0, 0] = np.nan
    np.save(path, bad)
    refused(path, "got NaN or inf in image 4")
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    refused(path, "to be a whole array file")


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.h5", "a.safetensors", "a-idx3-ubyte", "a-idx3-ubyte.gz"])
@pytest.mark.parametrize("damage", ["half", "empty", "noise"])
def test_damaged_files_are_named(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    if "idx" in name:
        write_idx(path, BYTES[:, 0])
    elif path.suffix == ".npy":
        np.save(path, BYTES)
    elif path.suffix == ".npz":
        np.savez(path, x=BYTES)
    elif path.suffix == ".h5":
        write_hdf5(path, x=BYTES)
    else:
        write_tensors(path, {"x": torch.tensor(BYTES)})
    content = path.read_bytes()
    noise = GENERATOR.integers(1, 256, 500, dtype=np.uint8).tobytes()
    path.write_bytes({"half": content[: len(content) // 2], "empty": b"", "noise": noise}[damage])
    refused(path, str(path))


def test_npz_with_a_damaged_member(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=BYTES)
    content = bytearray(path.read_bytes())
    content[600] ^= 255
    path.write_bytes(content)
    refused(path, "to be a whole array file, got .*CRC")


def test_missing_hdf5_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_hdf5(tmp_path / "a.h5", x=BYTES)
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused(path, r"expected the package h5py to read .*a.h5, got none\. Install it with: pip", RuntimeError)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz", "x.idx"])
def test_idx(tmp_path: Path, name: str) -> None:
    path = write_idx(tmp_path / name, BYTES[:, 0])
    assert torch.equal(load(path).tensor, torch.tensor(BYTES[:, :1]))
    assert torch.equal(load(path, limit=2).tensor, torch.tensor(BYTES[:2, :1]))


def test_idx_that_is_none(tmp_path: Path) -> None:
    refused(
        write_idx(tmp_path / "labels-idx1-ubyte", np.arange(9, dtype=np.uint8)), "to hold images .* Give the images"
    )
    path = write_idx(tmp_path / "a-idx3-ubyte", BYTES[:, 0])
    path.write_bytes(path.read_bytes()[:-5])
    refused(path, "to hold 480 bytes after its header, got 475: it is truncated")
    path.write_bytes(bytes([0, 0, 13, 3]))
    refused(path, "to start with an IDX header of bytes, got 00000d03")
    packed = gzip.compress(BYTES.tobytes())
    (tmp_path / "b-idx3-ubyte.gz").write_bytes(packed[:-20])
    refused(tmp_path / "b-idx3-ubyte.gz", "b-idx3-ubyte.gz")


def test_cifar(tmp_path: Path) -> None:
    pixels = GENERATOR.integers(0, 256, (7, 3, 32, 32), dtype=np.uint8)
    records = np.concatenate([np.arange(7, dtype=np.uint8)[:, None], pixels.reshape(7, -1)], 1)
    (tmp_path / "data_batch_1.bin").write_bytes(records[:4].tobytes())
    (tmp_path / "data_batch_2.bin").write_bytes(records[4:].tobytes())
    (tmp_path / "test_batch.bin").write_bytes(records[::-1].tobytes())
    assert torch.equal(load(tmp_path).tensor, torch.tensor(pixels))
    assert torch.equal(load(tmp_path, limit=5).tensor, torch.tensor(pixels[:5]))
    assert torch.equal(load(tmp_path / "test_batch.bin").tensor, torch.tensor(pixels[::-1].copy()))
    alone = tmp_path / "alone"
    alone.mkdir()
    (tmp_path / "test_batch.bin").rename(alone / "test_batch.bin")
    assert torch.equal(load(alone).tensor, torch.tensor(pixels[::-1].copy()))
    (alone / "test_batch.bin").rename(alone / "other.bin")
    refused(alone, r"to hold pictures .* got none. Name the file, as in .*other.bin")
    fine = np.concatenate([records[:, :1], records], 1)
    (tmp_path / "train.bin").write_bytes(fine.tobytes())
    assert torch.equal(load(tmp_path / "train.bin").tensor, torch.tensor(pixels))
    (tmp_path / "test.bin").write_bytes(fine.tobytes()[:-1])
    refused(tmp_path / "test.bin", "whole number of records of 3073 or 3074 bytes .* got 21517 bytes")


def save(path: Path, array: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path)


def test_folder_of_pictures(tmp_path: Path) -> None:
    for i, name in enumerate(["b/2.png", "a.png", "b/1.PNG"]):
        save(tmp_path / name, BYTES[i].transpose(1, 2, 0))
    (tmp_path / ".hidden").mkdir()
    save(tmp_path / ".hidden" / "x.png", BYTES[0].transpose(1, 2, 0))
    (tmp_path / "notes.txt").write_text("")
    assert torch.equal(load(tmp_path).tensor, torch.tensor(BYTES[[1, 2, 0]]))
    assert torch.equal(load(tmp_path, limit=1).tensor, torch.tensor(BYTES[[1]]))
    assert torch.equal(load(tmp_path / "a.png").tensor, torch.tensor(BYTES[[1]]))


def test_grey_and_colour(tmp_path: Path) -> None:
    save(tmp_path / "1.png", BYTES[0, 0])
    save(tmp_path / "2.png", BYTES[1, 0] > 127)
    assert load(tmp_path).shape == (1, 8, 10)
    save(tmp_path / "3.png", BYTES[2].transpose(1, 2, 0), "RGBA")
    save(tmp_path / "4.png", BYTES[2].transpose(1, 2, 0), "P")
    images = load(tmp_path)
    assert images.shape == (3, 8, 10)
    assert torch.equal(images.tensor[0], torch.tensor(BYTES[0, :1]).expand(3, -1, -1))
    assert torch.equal(images.tensor[2], torch.tensor(BYTES[2]))


def test_jpeg(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", np.full((16, 16, 3), 200, np.uint8))
    assert (load(tmp_path).tensor.int() - 200).abs().max() <= 1


def test_mixed_sizes_need_a_size(tmp_path: Path) -> None:
    save(tmp_path / "1.png", BYTES[0, 0])
    save(tmp_path / "2.png", BYTES[0, 0, :, :9])
    refused(tmp_path, r"2.png to have the 8x10 pixels of 1.png, got 8x9\. Give size=")
    assert load(tmp_path, size=4)[:].shape == (2, 1, 4, 4)
    refused(tmp_path, "crop to fit in images of 8x10 pixels, got 9", crop=9)


def test_pictures_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"to hold pictures \(.png, .jpg")
    (tmp_path / "a.png").write_bytes(b"no")
    refused(tmp_path, "a.png to be a picture, got none that pillow knows. It is")
    save(tmp_path / "a.png", BYTES[0].transpose(1, 2, 0))
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:100])
    refused(tmp_path, "a.png to be a picture")
    Image.fromarray(BYTES[0, 0].astype(np.int32)).save(tmp_path / "a.tif")
    refused(tmp_path / "a.tif", "a.tif to have 8 or 16 bits per channel, or floats, got pillow modes I", TypeError)


def test_sources_that_are_none(tmp_path: Path) -> None:
    refused(tmp_path / "none", "none to exist, got nothing there. Check the path")
    (tmp_path / "a.txt").write_text("")
    refused(tmp_path / "a.txt", "to be of a known kind, got a.txt. Give a folder of pictures")
    (tmp_path / "a.npz").mkdir()
    refused(tmp_path / "a.npz", "a.npz")
    for option in ("crop", "size", "limit"):
        refused("sample:test", f"expected {option} to be positive, got 0", **{option: 0})


def test_same_result_from_every_source(tmp_path: Path) -> None:
    def fingerprint(write: Callable[[Path], object], name: str) -> str:
        write(tmp_path / name)
        return load(tmp_path / name, crop=7, size=4).fingerprint

    def folder(path: Path) -> None:
        for i, image in enumerate(BYTES):
            save(path / f"{i}.png", image.transpose(1, 2, 0))

    prints = {
        fingerprint(folder, "folder"),
        fingerprint(lambda path: np.save(path, BYTES), "a.npy"),
        fingerprint(lambda path: write_hdf5(path, x=BYTES.transpose(0, 2, 3, 1)), "a.h5"),
    }
    assert len(prints) == 1
