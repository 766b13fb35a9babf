"""Rows in files: what they give is what a tensor gives, and no whole copy of them is made."""

import gzip
import multiprocessing
import os
import pickle
import resource

import numpy as np
import pytest
import torch

from emfast.commands.files import belong
from emfast.commands.restored import Stacked, write_results
from emfast.config import EvaluationConfig
from emfast.data import Store, file_rows, idx, load, load_observations, save_observations
from emfast.data import rows as module
from emfast.data.array_rows import write_npz
from emfast.data.file_rows import collect
from emfast.data.observations import open_observations
from emfast.data.rows import Mapped, Rows, joined, mapped, not_finite, picked, pieces
from emfast.em import Observations
from emfast.em.batches import Batches
from emfast.em.evaluation import Evaluator
from emfast.em.m_step import _resident
from emfast.operators import Identity, Mask, MotionBlur
from emfast.samplers import MMPS, WarmStart

VALUES = torch.randn(20, 2, 3, 5, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
IDS = torch.tensor([7, 8, 9, 3, 19, 0, 3])
CHOICES = (IDS, slice(None), slice(4, 9), slice(1, 20, 3), [2, -1], VALUES[:, 0, 0, 0] > 0, 5, IDS[:0])


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch):
    """Has every array read when it is asked for, a few rows at a time."""
    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(file_rows, "SMALL", 0)
    monkeypatch.setattr(module, "PIECE", 3 * VALUES[0].nbytes)


def write(path, values=VALUES):
    """Writes an array in the way that a name says."""
    array = values.numpy()
    if path.name == "a.npy":
        np.save(path, array)
    elif path.name == "fortran.npy":
        np.save(path, np.asfortranarray(array))
    elif path.name == "other-order.npy":
        np.save(path, array.astype(array.dtype.newbyteorder()))
    elif path.suffix == ".npz":
        (np.savez_compressed if path.stem == "packed" else np.savez)(path, y=array)
    elif path.suffix == ".safetensors":
        save_observations(path, values)
    else:
        h5py = pytest.importorskip("h5py", reason="needs h5py (extra hdf5)")
        chunks = {"chunks": (4, *array.shape[1:]), "compression": "gzip"} if path.stem == "packed" else {}
        with h5py.File(path, "w") as file:
            file.create_dataset("y", data=array, **chunks)


NAMES = ("a.npy", "a.npz", "packed.npz", "a.safetensors", "a.h5", "packed.h5", "fortran.npy", "other-order.npy")
DAMAGES = {"cut": lambda content: content[:-40], "changed": lambda content: content[:-90] + b"x" + content[-89:]}


@pytest.mark.parametrize("name", NAMES)
def test_every_file_gives_what_it_holds(name, tmp_path):
    write(tmp_path / name)
    images = load(tmp_path / name)
    assert isinstance(images.tensor, Rows)
    for ids in CHOICES:
        assert torch.equal(images[ids], VALUES[ids])
    assert torch.equal(load(tmp_path / name, limit=7)[:], VALUES[:7])
    assert torch.equal(images.subset([4, 2]).subset([1])[:], VALUES[[2]])
    np.save(tmp_path / "plain.npy", VALUES.numpy())
    assert images.fingerprint == load(tmp_path / "plain.npy").fingerprint
    with pytest.raises(IndexError):
        images[torch.tensor([20])]


def test_layouts_and_bytes(tmp_path):
    pixels = torch.randint(256, (9, 6, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "a.npz", x=pixels.numpy())
    images = load(tmp_path / "a.npz")
    expected = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    assert isinstance(images.tensor, Rows)
    assert torch.equal(images[:], expected)
    assert torch.equal(images.floats[IDS % 9], expected[IDS % 9])
    np.savez(tmp_path / "b.npz", x=pixels[..., 0].numpy())
    assert torch.equal(load(tmp_path / "b.npz")[:], expected[:, :1])
    cut = load(tmp_path / "a.npz", crop=5, size=4)
    assert isinstance(cut.tensor, Rows)
    module.SMALL = file_rows.SMALL = 1 << 24
    assert torch.equal(load(tmp_path / "a.npz", crop=5, size=4)[:], cut[:])


def test_a_folder_of_pictures(tmp_path):
    from PIL import Image

    modes = ("L", "RGB", "L", "I;16", "RGB")
    for number, mode in enumerate(modes):
        pixels = np.random.default_rng(number).integers(0, 255, (4, 5, 3))
        array = pixels.astype(np.uint8) if mode == "RGB" else pixels[..., 0]
        Image.fromarray(array.astype(np.uint16 if mode == "I;16" else np.uint8)).save(tmp_path / f"{number}.png")
    images = load(tmp_path)
    assert isinstance(images.tensor, Rows)
    module.SMALL = file_rows.SMALL = 1 << 24
    assert load(tmp_path).tensor.dtype == torch.float32
    assert torch.equal(load(tmp_path)[:], images[:])


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-40], lambda content: content[:-90] + b"x" + content[-89:]]
)
@pytest.mark.parametrize("name", ["a.npz", "packed.npz", "a.safetensors"])
def test_damage_is_found_before_it_is_read(name, damage, tmp_path):
    write(tmp_path / name)
    content = damage((tmp_path / name).read_bytes())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        load(tmp_path / name)


def test_a_file_that_shrinks_is_named(tmp_path):
    write(tmp_path / "a.npy")
    images = load(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"a\.npy to be whole"):
        images[19]


@pytest.mark.parametrize("name", ["a.npy", "packed.npz"])
def test_processes_that_are_forked_read_each_their_own_rows(name, tmp_path):
    """They have one open file together, and one place in it."""
    write(tmp_path / name)
    images = load(tmp_path / name)
    images[0]  # opens it

    def read():
        for turn in range(500):
            assert torch.equal(images[[turn % 20]], VALUES[[turn % 20]])

    processes = [multiprocessing.get_context("fork").Process(target=read) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4


def test_images_in_a_file_go_to_a_process_that_is_spawned(tmp_path):
    write(tmp_path / "a.npy")
    images = load(tmp_path / "a.npy")
    images[0]
    assert torch.equal(pickle.loads(pickle.dumps(images))[:], VALUES)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "PIECE", 7)  # bytes: less than a row
    pixels = (VALUES[:, 0] * 100 + 128).to(torch.uint8)
    content = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in pixels.shape) + pixels.numpy().tobytes()
    path = tmp_path / "images.idx"
    path.write_bytes(gzip.compress(content) if packed else content)
    images = load(path)
    assert isinstance(images.tensor, Rows)
    assert torch.equal(images.tensor[:], pixels[:, None])
    assert torch.equal(load(path, limit=4).tensor[:], pixels[:4, None])
    path.write_bytes(gzip.compress(content[:-1]) if packed else content[:-1])
    with pytest.raises(ValueError, match="truncated"):
        load(path)


def test_arrays_are_written_as_numpy_does(tmp_path):
    arrays = {"y": VALUES, "mask": VALUES > 0, "ids": IDS, "none": VALUES[:0], "file": VALUES.half()}
    with (tmp_path / "ours.npz").open("wb") as file:
        write_npz(file, arrays | {"stack": Stacked([VALUES, Mapped(VALUES, torch.abs)])})
    with np.load(tmp_path / "ours.npz") as found:
        for name, values in (arrays | {"stack": torch.stack([VALUES, VALUES.abs()], 1)}).items():
            assert found[name].dtype == values.numpy().dtype
            np.testing.assert_array_equal(found[name], values.numpy())


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "packed.h5"])
@pytest.mark.parametrize("kind", ["mask", "kernel"])
def test_observations_in_files(name, kind, tmp_path):
    if name.endswith("h5"):
        pytest.importorskip("h5py", reason="needs h5py (extra hdf5)")
    y = torch.randn(20, 1, 7, 7, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    mask = torch.rand(20, 7, 7, generator=torch.Generator().manual_seed(2)) < 0.5
    mask[3] = False  # a piece may show nothing
    given = {"mask": mask} if kind == "mask" else {"kernel": torch.full((20, 3, 3), 1 / 9)}
    operator = Mask() if kind == "mask" else MotionBlur(size=3)
    save_observations(tmp_path / name, y, given)
    lazy = Observations.from_file(tmp_path / name, operator, sigma=0.1)
    whole = Observations(operator, y=y, given=load_observations(tmp_path / name)[1], sigma=0.1)
    assert isinstance(lazy.y, Rows)
    assert isinstance(open_observations(tmp_path / name)[1][kind], Rows)
    assert torch.equal(lazy.read(IDS), whole.read(IDS))
    for key, value in whole.operator.parameters(IDS, (1, 7, 7)).items():
        assert torch.equal(lazy.operator.parameters(IDS, (1, 7, 7))[key], value)
    assert lazy.fingerprint == whole.fingerprint
    assert len(Observations.from_file(tmp_path / name, operator, limit=3)) == 3


def test_a_store_serves_as_the_tensor_that_it_holds(tmp_path):
    store = Store(tmp_path, count=20, shard_size=6, identity={})
    for index, start, stop in store.shards:
        store.write(index, {"images": VALUES[start:stop], "ids": 3 * torch.arange(start, stop)})
    rows = store.rows()
    assert isinstance(rows, Rows)
    for ids in CHOICES:
        assert torch.equal(rows[ids], VALUES[ids])
    assert torch.equal(store.rows("images", 2)[:], VALUES[:12])
    assert torch.equal(joined((VALUES, rows, picked(rows, IDS)))[:], torch.cat((VALUES, VALUES, VALUES[IDS])))
    assert torch.equal(mapped(rows, torch.neg)[IDS], -VALUES[IDS])
    assert torch.equal(collect(part for _, part in pieces(rows))[IDS], VALUES[IDS])
    assert _resident(rows, torch.device("cpu")) is rows
    warm = WarmStart(MMPS(), rows, store.load("ids"), 1.0)
    ids = torch.tensor([57, 0, 4, 100, 9])
    assert warm.known(ids).tolist() == [True, True, False, False, True]
    assert torch.equal(warm.earlier(ids[warm.known(ids)]), VALUES[[19, 0, 3]])


def test_bfloat16_takes_half_the_disk_and_rounds_by_less_than_half_a_grey_level(tmp_path):
    images = load("sample:train")[:256]
    sizes = []
    for dtype in (torch.float32, torch.bfloat16):
        store = Store(tmp_path / str(dtype), count=256, shard_size=256, identity={}, dtype=dtype)
        store = Store.open(store.folder)  # as another process does that joins the work
        store.write(0, {"images": images, "seconds": torch.rand(256)})
        sizes.append(store.path(0).stat().st_size)
        found = store.load()
        assert found.dtype == store.read(0)["images"].dtype == torch.float32
    assert sizes[1] < 0.51 * sizes[0]
    error = (found - images).abs()
    assert error.max() <= 1 / 512 < 0.26 * 2 / 255  # a grey level is 2/255
    assert (2 / error.square().mean().sqrt()).log10() * 20 > 65  # PSNR in dB


def test_rows_that_are_not_finite_are_found():
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.complex64, torch.int64):
        assert not not_finite(VALUES.to(dtype)).any()
    large = torch.full((3, 2), 3e38)  # whose sum is infinite
    assert not not_finite(large).any()
    for value in (float("nan"), float("inf"), -float("inf")):
        assert not_finite(torch.tensor([[0.0, 1], [value, 1], [3e38, 3e38], [1, value]])).tolist() == [0, 1, 0, 1]
    assert not_finite(torch.tensor([[float("inf")], [-float("inf")]])).all()


def read_and_write(folder, count):
    """What a round does with its observations beside sampling and training; returns the memory that it took, in MB."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    observations = Observations.from_file(folder / "y.npz", Identity())
    assert observations.fingerprint
    ids, store = torch.arange(count), Store(folder / "store", count=count, shard_size=64, identity={})
    for index, start, stop in store.shards:
        store.write(index, {"images": observations.read(ids[start:stop])})
    rows = Store.open(folder / "store").rows()
    images, batches = _resident(rows, torch.device("cpu")), Batches(count, 64, 0)
    for k in range(count // 64):
        assert len(images[batches.ids(k)]) == 64
    Evaluator(EvaluationConfig(samples=0), None, (3, 64, 64)).reconstructions(rows, ids, observations)
    (folder / "out").mkdir()
    write_results(folder / "out", observations, ids, [store, store], 1)
    assert belong(load(folder / "store").tensor, rows)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_memory_does_not_grow_with_the_data(tmp_path, monkeypatch):
    monkeypatch.undo()
    peaks = []
    for count in (128, 2048):  # 6 and 100 MB of them
        folder = tmp_path / str(count)
        folder.mkdir()
        np.savez(folder / "y.npz", y=np.zeros((count, 3, 64, 64), np.float32))
        with multiprocessing.get_context("fork").Pool(1) as pool:
            peaks.append(pool.apply(read_and_write, (folder, count)))
    assert peaks[1] < peaks[0] + 40, peaks
