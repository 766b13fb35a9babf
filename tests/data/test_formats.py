"""What a file holds decides how it is read, not what it is called; what does not add up is refused."""

import gzip
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_readers import refused, write_hdf5

from emfast._files import write_tensors
from emfast.data import load

BYTES = np.random.default_rng(0).integers(0, 256, (5, 7, 9), dtype=np.uint8)
IDX = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in BYTES.shape) + BYTES.tobytes()
WRITE = {
    "npy": lambda path: np.save(path.open("wb"), BYTES),
    "npz": lambda path: np.savez(path.open("wb"), x=BYTES),
    "h5": lambda path: write_hdf5(path, x=BYTES),
    "safetensors": lambda path: write_tensors(path, {"x": torch.tensor(BYTES)}),
    "idx": lambda path: path.write_bytes(IDX),
    "idx.gz": lambda path: path.write_bytes(gzip.compress(IDX)),
    "tif": lambda path: Image.fromarray(BYTES[0]).save(
        path, "TIFF", save_all=True, append_images=[Image.fromarray(page) for page in BYTES[1:]]
    ),
}


@pytest.mark.parametrize("name", ["a.NPY", "a.npz", "a.H5", "idx.png", "ubyte.npy", "a.bin", "a.dat", "a", "a.tar.gz"])
@pytest.mark.parametrize("kind", WRITE)
def test_the_content_tells_the_format(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / name
    WRITE[kind](path)
    assert torch.equal(load(path).tensor, torch.tensor(BYTES)[:, None])
    if kind in ("npz", "h5", "safetensors"):
        assert torch.equal(load(f"{path}:x").tensor, torch.tensor(BYTES)[:, None])


def records(labels: np.ndarray) -> tuple[bytes, torch.Tensor]:
    """A CIFAR file of given labels, (N, 1 or 2), and its images."""
    pixels = np.random.default_rng(1).integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
    content = np.concatenate([labels.astype(np.uint8), pixels.reshape(len(labels), -1)], 1)
    return content.tobytes(), torch.tensor(pixels)


@pytest.mark.parametrize("name", ["train.bin", "test.bin", "data_batch_1.bin", "mine.bin"])
@pytest.mark.parametrize("labels", [[[9], [0], [3]], [[19, 99], [0, 0], [4, 77]]])
def test_the_size_tells_cifar_10_from_cifar_100(tmp_path: Path, name: str, labels: list[list[int]]) -> None:
    content, pixels = records(np.array(labels))
    (tmp_path / name).write_bytes(content)
    assert torch.equal(load(tmp_path / name).tensor, pixels)
    for damaged in (content[:-1], content + b"\0"):
        (tmp_path / name).write_bytes(damaged)
        refused(tmp_path / name, "to be a whole number of records of 3073 or 3074 bytes that begin with their labels")


def test_folders_of_cifar(tmp_path: Path) -> None:
    for name in ("train.bin", "test.bin"):
        content, _ = records(np.array([[len(name), 20]] * len(name)))
        (tmp_path / name).write_bytes(content)
    assert len(load(tmp_path)) == len("train.bin")
    (tmp_path / "other.bin").write_bytes(records(np.array([[255], [255]]))[0])
    refused(tmp_path / "other.bin", "that begin with their labels")
    (tmp_path / "10").mkdir()
    (tmp_path / "10" / "data_batch_1.bin").write_bytes(records(np.array([[1], [2]]))[0])
    os.link(tmp_path / "10" / "data_batch_1.bin", tmp_path / "10" / "data_batch_2.bin")
    assert len(load(tmp_path / "10")) == 2


def test_one_picture_is_no_stack(tmp_path: Path) -> None:
    for shape in ((32, 32, 3), (32, 32, 4), (32, 32, 1), (3, 32, 32), (4, 32, 32)):
        np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
        refused(
            tmp_path / "a.npy", r"to be a stack \(N, H, W\), got .* one image with its channels. Store it as", limit=2
        )
    np.save(tmp_path / "a.npy", np.zeros((1, 32, 32), np.uint8))
    assert load(tmp_path / "a.npy")[:].shape == (1, 1, 32, 32)


@pytest.mark.parametrize("limit", [None, 2])
def test_idx_is_read_to_its_end(tmp_path: Path, limit: int | None) -> None:
    options = {} if limit is None else {"limit": limit}
    for damaged, words in ((IDX + b"\0", "after its header, got more"), (IDX[:-1], "it is truncated")):
        for name in ("a-idx3-ubyte", "b-idx3-ubyte.gz"):
            (tmp_path / name).write_bytes(gzip.compress(damaged) if name.endswith("gz") else damaged)
            refused(tmp_path / name, words, **options)
    packed = bytearray(gzip.compress(IDX, compresslevel=0))
    packed[-20] ^= 1  # a pixel of the last image
    (tmp_path / "c.gz").write_bytes(packed)
    refused(tmp_path / "c.gz", "to be a whole gzip file, got CRC", **options)
    huge = bytes([0, 0, 8, 3]) + b"\xff" * 12
    (tmp_path / "d-idx3-ubyte").write_bytes(huge + IDX)
    refused(tmp_path / "d-idx3-ubyte", "it is truncated", **options)


def header(text: str) -> bytes:
    """A .npy file with a header and few bytes behind it."""
    padded = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + bytes(64)


BROKEN = [
    "{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776, 1099511627776, 8)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776, 8, 8)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8, 8)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (1e3, 8, 8)}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (8, 8, 8)}",
    "{'descr': '<f999', 'fortran_order': False, 'shape': (8, 8, 8)}",
    "{'descr': [('a', '<f4', (2147483647, 2147483647))], 'fortran_order': False, 'shape': (1, 8, 8)}",
    "{'descr': '|u1', 'shape': (8,)}",
    "[" * 500,
    "{'shape': " + "(" * 90 + ")" * 90 + "}",
    "\0" * 100,
]


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("text", BROKEN)
def test_broken_headers(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.npy").write_bytes(header(text))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", header(text))
    for name in ("a.npy", "a.npz"):
        refused(tmp_path / name, f"{name}.* to be a whole array file")


def test_a_second_array_in_a_file(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.save(file, BYTES)
        np.save(file, BYTES)
    refused(tmp_path / "a.npy", "to be a whole array file, got 443 bytes behind its array")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.png", "a-idx3-ubyte", "a.gz", "a.bin", "a.h5", "a"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    refused(tmp_path / name, "to be a file or a folder, got a pipe")


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "a.npz", x=BYTES)
    assert len(load("~/a.npz")) == len(load("~/a.npz:x")) == 5
    refused("~/b.npz", f"{tmp_path}/b.npz to exist")
