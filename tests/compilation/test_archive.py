"""A cache of kernels: it says what it is for, is refused where that is something else, and travels as one file."""

import json
import multiprocessing
import os
import tempfile
from pathlib import Path

import pytest

from emfast.kernels import _archive, _manifest

CALLS = {"architectures": ["90"], "calls": {"90": []}}


@pytest.fixture
def cache(tmp_path):
    """A folder that looks like Triton's."""
    folder = tmp_path / "cache"
    for name in ("AAA", "BBB"):
        (folder / name).mkdir(parents=True)
        (folder / name / "kernel.cubin").write_bytes(name.encode() * 1000)
        paths = {"kernel.cubin": str(folder / name / "kernel.cubin")}
        (folder / name / "__grp__kernel.json").write_text(json.dumps({"child_paths": paths}))
    _manifest.write(folder, CALLS)
    return folder


@pytest.fixture
def archive(cache, tmp_path, monkeypatch):
    """The same as a file; the node's own disk is a folder here."""
    with open(tmp_path / "kernels.tar", "wb") as file:
        _archive.pack(cache, file)
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "disk"))
    _archive.unpacked.cache_clear()
    return str(tmp_path / "kernels.tar")


@pytest.mark.parametrize("name", _manifest.DECIDE)
def test_a_cache_of_another_version_is_refused(cache, name):
    _manifest.check(cache)
    _manifest.check(cache, 90)
    (cache / _manifest.FILE).write_text(json.dumps({**_manifest.here(), **CALLS, name: "1.0"}))
    with pytest.raises(RuntimeError, match=r"^kernels: expected the cache .* to be of .*, got .*\. Make one [^\n]*$"):
        _manifest.check(cache)


def test_a_cache_for_another_gpu_is_refused(cache):
    with pytest.raises(RuntimeError, match="to be for sm_80, got sm_90"):
        _manifest.check(cache, 80)


def test_a_damaged_manifest_is_named_and_none_is_none(cache, tmp_path):
    (cache / _manifest.FILE).write_text("{}")
    with pytest.raises(ValueError, match=_manifest.FILE):
        _manifest.check(cache)
    _manifest.check(tmp_path)  # Triton's own cache may hold anything


def test_what_is_unpacked_is_what_was_packed(cache, archive, monkeypatch):
    monkeypatch.setenv(_archive.VARIABLE, archive)
    monkeypatch.setenv("TRITON_CACHE_DIR", "elsewhere")
    place = Path(_archive.folder())
    assert os.environ["TRITON_CACHE_DIR"] == str(place)
    assert place.parent == Path(tempfile.gettempdir())
    for name in {path.relative_to(cache) for path in cache.rglob("*.cubin")} | {Path(_manifest.FILE)}:
        assert (place / name).read_bytes() == (cache / name).read_bytes()
    for group in place.rglob("__grp__*"):  # the paths that Triton notes are those of the node
        assert json.loads(group.read_text())["child_paths"] == {"kernel.cubin": str(group.parent / "kernel.cubin")}
    with open(archive + "2", "wb") as file:
        _archive.pack(cache, file)
    assert Path(archive).read_bytes() == Path(archive + "2").read_bytes()


def unpack(archive, start, found):
    """What each process of a node does."""
    start.wait()
    place = _archive.unpacked(archive)
    found.put((str(place), sorted(str(path.relative_to(place)) for path in place.rglob("*.cubin"))))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_many_processes_unpack_at_once(archive):
    context = multiprocessing.get_context("fork")
    start, found = context.Event(), context.Queue()
    processes = [context.Process(target=unpack, args=(archive, start, found)) for _ in range(8)]
    for process in processes:
        process.start()
    start.set()
    results = [found.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(30)
    assert len(set(map(str, results))) == 1
    assert results[0][1] == ["AAA/kernel.cubin", "BBB/kernel.cubin"]
    assert [str(path) for path in Path(tempfile.gettempdir()).iterdir()] == [results[0][0]]  # nothing is left beside


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied", "missing", "other"])
def test_a_damaged_archive_is_named_and_nothing_is_left(archive, damage):
    path = Path(archive)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        place = content.index(b"AAAAAAAA")
        changed = content[: place + 5] + b"x" + content[place + 6 :]
        path.write_bytes({"cut": content[:place], "changed": changed, "emptied": b"", "other": b"x" * 2000}[damage])
    with pytest.raises(RuntimeError, match=r"kernels\.tar to be an archive of kernels, got .*\. Copy it"):
        _archive.unpacked(archive)
    assert not list(Path(tempfile.gettempdir()).iterdir())
