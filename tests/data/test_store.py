"""The store of reconstructions: pieces, resume, damage, foreign files."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emfast._files import read_json, write_json
from emfast.data import Store, load

IDENTITY = {"seed": 0, "sampler": {"name": "DPS", "steps": 10}, "round": 1}


def make(folder: Path, **changes: object) -> Store:
    return Store(folder, **{"count": 10, "shard_size": 4, "identity": IDENTITY, **changes})  # type: ignore[arg-type]


def fill(store: Store) -> torch.Tensor:
    images = torch.randn(store.count, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for index, start, stop in store.shards:
        store.write(index, {"images": images[start:stop], "ids": torch.arange(start, stop)})
    return images


def test_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    store = make(tmp_path)
    assert store.shards == [(0, 0, 4), (1, 4, 8), (2, 8, 10)]
    images = fill(store)
    again = Store.open(tmp_path)
    assert (again.count, again.shard_size, again.identity) == (10, 4, IDENTITY)
    assert torch.equal(again.load(), images)
    assert torch.equal(again.load("ids"), torch.arange(10))
    assert torch.equal(again.read(1)["images"], images[4:8])
    assert read_json(tmp_path / "manifest.json")["shards"][2] == {
        "file": "shard-00002.safetensors",
        "start": 8,
        "stop": 10,
    }


def test_a_store_is_a_source_of_images(tmp_path: Path) -> None:
    images = fill(make(tmp_path))
    assert torch.equal(load(tmp_path)[:], images)


@given(st.integers(1, 50), st.integers(1, 60))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_shards_cover_every_row_once(tmp_path: Path, count: int, shard_size: int) -> None:
    store = Store(tmp_path / f"{count}-{shard_size}", count=count, shard_size=shard_size, identity={})
    assert [row for _, start, stop in store.shards for row in range(start, stop)] == list(range(count))
    assert [index for index, _, _ in store.shards] == list(range(len(store.shards)))


def test_resume_writes_only_what_is_missing(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.write(1, {"images": torch.zeros(4, 1, 4, 4)})
    again = make(tmp_path)
    assert [again.has(index) for index, _, _ in again.shards] == [False, True, False]
    assert again.missing == [(0, 0, 4), (2, 8, 10)]
    with pytest.raises(
        ValueError, match=r"Store.load: expected .* to be complete, got 2 of 3 shards missing \(first 0\)"
    ):
        again.load()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"count": 11}, "'count' to be 10"),
        ({"shard_size": 5}, "'shard_size' to be 4"),
        ({"identity": {**IDENTITY, "seed": 1}}, "'seed' to be 0"),
        ({"identity": {**IDENTITY, "new": 1}}, "'new' to be absent"),
        ({"identity": {"seed": 0, "round": 1}}, "'sampler' to be {"),
        ({"identity": {**IDENTITY, "sampler": {"name": "DPS", "steps": 11}}}, "'sampler' to be"),
    ],
)
def test_another_identity_is_refused_by_name(tmp_path: Path, changes: dict[str, object], key: str) -> None:
    fill(make(tmp_path))
    with pytest.raises(ValueError) as error:
        make(tmp_path, **changes)
    assert str(error.value).startswith(f"Store: expected {key}")
    assert str(tmp_path) in str(error.value)


def test_a_store_that_began_before_a_value_was_noted(tmp_path: Path) -> None:
    sizes = {"count": 4, "shard_size": 2}
    Store(tmp_path, **sizes, identity={"seed": 1}).write(0, {"ids": torch.arange(2)})
    later = Store(tmp_path, **sizes, identity={"seed": 1, "steps": 5}, defaults={"steps": 5, "other": 1})
    assert later.has(0)
    later.write(1, {"ids": torch.arange(2)})
    assert Store.open(tmp_path).load("ids").tolist() == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="'steps' to be 5 as in the store"):
        Store(tmp_path, **sizes, identity={"seed": 1, "steps": 6}, defaults={"steps": 5})


def test_tuples_in_the_identity_are_json_lists(tmp_path: Path) -> None:
    make(tmp_path, identity={"shape": (1, 2)})
    assert make(tmp_path, identity={"shape": [1, 2]}).identity == {"shape": [1, 2]}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign", "moved"])
def test_damaged_shards_are_named(tmp_path: Path, damage: str) -> None:
    store = make(tmp_path / "a")
    fill(store)
    path = store.path(0)
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[:-1])
    if damage == "flipped":
        content[-1] ^= 1
        path.write_bytes(content)
    if damage == "empty":
        path.write_bytes(b"")
    if damage == "foreign":
        other = make(tmp_path / "b", identity={"seed": 5})
        fill(other)
        path.write_bytes(other.path(0).read_bytes())
    if damage == "moved":
        path.write_bytes(store.path(1).read_bytes())
    for read in (store.has, store.read):
        with pytest.raises(ValueError, match=r"expected .*shard-00000.safetensors to .*delete it"):
            read(0)
    with pytest.raises(ValueError, match=r"shard-00000.safetensors"):
        store.load()
    path.unlink()
    assert store.missing == [(0, 0, 4)]


def test_only_exact_dtypes_and_finite_values(tmp_path: Path) -> None:
    store = make(tmp_path)
    for dtype in (torch.uint8, torch.float16, torch.float64):
        with pytest.raises(TypeError, match=r"Store.write: expected 'images' to be float32"):
            store.write(0, {"images": torch.zeros(4, 1, 2, 2, dtype=dtype)})
    with pytest.raises(ValueError, match=r"to have 4 rows \(shard 0\)"):
        store.write(0, {"images": torch.zeros(3, 1, 2, 2)})
    images = torch.zeros(4, 1, 2, 2)
    images[2, 0, 1, 1] = torch.nan
    with pytest.raises(ValueError, match="got NaN or inf in row 6"):
        store.write(1, {"images": images})
    with pytest.raises(ValueError, match=r"expected index to be in 0 .. 2, got 3"):
        store.write(3, {"images": images})
    assert store.missing == store.shards


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Store.open: expected .* to be a store, got no manifest there"):
        Store.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json to be valid JSON"):
        Store.open(tmp_path)
    write_json(tmp_path / "manifest.json", [1])
    with pytest.raises(ValueError, match=r"manifest.json to hold version, count"):
        make(tmp_path)
    (tmp_path / "manifest.json").unlink()
    store = make(tmp_path)
    fill(store)
    write_json(tmp_path / "manifest.json", {**read_json(tmp_path / "manifest.json"), "version": 99})
    with pytest.raises(ValueError, match="to be of version 1, got 99"):
        Store.open(tmp_path)


def test_a_lost_manifest_is_written_again(tmp_path: Path) -> None:
    images = fill(make(tmp_path))
    manifest = (tmp_path / "manifest.json").read_bytes()
    (tmp_path / "manifest.json").unlink()
    for changes in ({"count": 9}, {"shard_size": 5}, {"identity": {}}):
        with pytest.raises(ValueError, match="to be a store or empty, got shards of another one"):
            make(tmp_path, **changes)
        assert not (tmp_path / "manifest.json").exists()
    assert torch.equal(make(tmp_path).load(), images)
    assert (tmp_path / "manifest.json").read_bytes() == manifest


@pytest.mark.parametrize(("old", "new"), [('"round": 1', '"round": 2'), ('"shard_size": 4', '"shard_size": 5')])
def test_a_manifest_with_a_flipped_digit_is_named(tmp_path: Path, old: str, new: str) -> None:
    fill(make(tmp_path, count=8))
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=r"manifest\.json to be of store .* delete it"):
        make(tmp_path, count=8)


def test_unknown_name(tmp_path: Path) -> None:
    store = make(tmp_path)
    fill(store)
    with pytest.raises(ValueError, match=r"expected name to be one of \['ids', 'images'\], got 'x'"):
        store.load("x")
