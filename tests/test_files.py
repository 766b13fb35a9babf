"""Atomic files: killed, full, damaged, concurrent."""

import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emfast import _files
from emfast._files import (
    read_json,
    read_tensors,
    remove_folder,
    settle_folder,
    write_bytes,
    write_file,
    write_folder,
    write_json,
    write_tensors,
    write_text,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.float64)


def run_killed(action: Callable[[], object], after: float | None = None) -> int:
    """Runs an action in a process of its own, killed after some seconds if it does not kill itself."""

    def alone() -> None:
        torch.set_num_threads(1)  # a forked child has lost the threads of its parent, and would wait for them
        signal.alarm(20)
        action()

    process = multiprocessing.get_context("fork").Process(target=alone)
    process.start()
    if after is not None:
        time.sleep(after)
        os.kill(process.pid or 0, signal.SIGKILL)
    process.join(20)
    assert process.exitcode is not None
    return process.exitcode


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def temporaries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith((".tmp-", ".old-")))


def test_round_trips(tmp_path: Path) -> None:
    write_bytes(tmp_path / "deep" / "a.bin", b"\x00\xff")
    assert (tmp_path / "deep" / "a.bin").read_bytes() == b"\x00\xff"
    write_text(tmp_path / "a.txt", "é")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "é"
    write_json(tmp_path / "a.json", {"a": [1, None, "é"]})
    assert read_json(tmp_path / "a.json") == {"a": [1, None, "é"]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.txt", "deep"]


def test_new_files_obey_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "a")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tensors_round_trip(tmp_path: Path, kinds: list[tuple[torch.dtype, list[int]]]) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"t{i}": torch.randint(0, 2, shape, generator=generator).to(dtype) for i, (dtype, shape) in enumerate(kinds)
    }
    write_tensors(tmp_path / "t.safetensors", tensors)
    found = read_tensors(tmp_path / "t.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_tensors_may_be_views_and_share_storage(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {"base": base, "same": base, "slice": base[1], "transposed": base.transpose(0, 2)}
    write_tensors(tmp_path / "t.safetensors", tensors, {"note": "x"})
    found = read_tensors(tmp_path / "t.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert _files.read_tensors_and_metadata(tmp_path / "t.safetensors")[1] == {"note": "x"}


@given(st.integers(0, 10**6), st.integers(1, 255), st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_tensors_are_named(tmp_path: Path, position: int, change: int, truncate: bool) -> None:
    path = tmp_path / "t.safetensors"
    tensors = {"a": torch.arange(7.0), "b": torch.arange(5)}
    write_tensors(path, tensors)
    content = bytearray(path.read_bytes())
    position %= len(content)
    if truncate:
        content = content[:position]
    else:
        content[position] ^= change
    path.write_bytes(content)
    sentence = ""
    try:
        found = read_tensors(path)
    except ValueError as error:
        sentence = str(error)
    if sentence:
        assert str(path) in sentence
        assert "\n" not in sentence
    else:  # only the name of the checksum was hit, or white space
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_missing_and_damaged_json(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"read_json: expected .*a.json to be a file"):
        read_json(tmp_path / "a.json")
    for content in (b"", b'{"a": ', b"\xff\xfe"):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"read_json: expected .*a.json to be valid JSON, got .*delete it"):
            read_json(tmp_path / "a.json")


@pytest.mark.parametrize("moment", ["half", "fsync", "replace", "replaced"])
def test_killed_at_each_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    path = tmp_path / "a.json"
    write_json(path, "old" * 1000)
    replace = os.replace

    def action() -> None:
        if moment == "half":
            write_file(path, lambda file: (file.write(b'"new'), file.flush(), kill_self()))  # type: ignore[func-returns-value]
        if moment == "fsync":
            monkeypatch.setattr(os, "fsync", lambda _: kill_self())
        if moment == "replace":
            monkeypatch.setattr(os, "replace", lambda *_: kill_self())
        if moment == "replaced":
            monkeypatch.setattr(os, "replace", lambda *paths: (replace(*paths), kill_self()))  # type: ignore[func-returns-value]
        write_json(path, "new" * 1000)

    assert run_killed(action) == -signal.SIGKILL
    assert read_json(path) == ("new" if moment == "replaced" else "old") * 1000
    assert len(temporaries(tmp_path)) == (0 if moment == "replaced" else 1)
    write_json(tmp_path / "another.json", 1)
    assert temporaries(tmp_path) == []


def test_killed_at_random_moments(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.zeros(20_000)})

    def action() -> None:
        for i in range(100_000):
            write_tensors(path, {"a": torch.full((20_000,), float(i))})

    generator = random.Random(0)
    for _ in range(20):
        assert run_killed(action, generator.uniform(0.005, 0.06)) == -signal.SIGKILL
        value = read_tensors(path)["a"]
        assert (value == value[0]).all()
    write_tensors(path, {"a": torch.zeros(1)})
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.safetensors"]


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("done", [False, True])
def test_folder_killed_at_each_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, done: bool) -> None:
    path = tmp_path / "model"
    write_folder(path, lambda folder: (folder / "name").write_text("old"))
    replace, calls = os.replace, []

    def killing(*paths: object) -> None:
        calls.append(paths)
        if len(calls) == call and not done:
            kill_self()
        replace(*paths)  # type: ignore[arg-type]
        if len(calls) == call:
            kill_self()

    def action() -> None:
        monkeypatch.setattr(os, "replace", killing)
        write_folder(path, lambda folder: (folder / "name").write_text("new"))

    assert run_killed(action) == -signal.SIGKILL
    settle_folder(path)
    assert (path / "name").read_text() == ("new" if (call, done) == (2, True) else "old")
    write_folder(path, lambda folder: (folder / "sub").mkdir())
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert [entry.name for entry in path.iterdir()] == ["sub"]


def test_folder_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_folder(path, lambda folder: (folder / "name").write_text("old"))

    def fail(folder: Path) -> None:
        (folder / "name").write_text("new")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_folder(path, fail)
    assert (path / "name").read_text() == "old"
    assert temporaries(tmp_path) == []


def test_full_disk_leaves_nothing_partial(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")

    def action() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            write_tensors(tmp_path / "a", {"a": torch.zeros(100_000)})
        except OSError as error:
            good = error.errno == errno.EFBIG and str(error).startswith(f"write: expected {tmp_path}/a to be writable")
            os._exit(7 if good else 8)

    assert run_killed(action) == 7
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"^write: expected .*/file/a to be writable, got .*\. A part of its path is a f"):
        write_text(tmp_path / "file" / "a", "a")


def test_an_interrupt_leaves_nothing_partial(tmp_path: Path) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_living_writers_are_left_alone(tmp_path: Path) -> None:
    def nested(file: object) -> None:
        write_text(tmp_path / "b", "b")
        assert len(temporaries(tmp_path)) == 1
        file.write(json.dumps("a").encode())  # type: ignore[attr-defined]

    write_file(tmp_path / "a", nested)
    assert read_json(tmp_path / "a") == "a"
    assert temporaries(tmp_path) == []


def test_temporaries_of_other_machines_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("emfast._process.machine", lambda: "01234567")
        assert run_killed(lambda: write_file(tmp_path / "a", lambda file: kill_self())) == -signal.SIGKILL
    (tmp_path / ".tmp-notes").touch()  # and those of whoever
    write_text(tmp_path / "b", "b")
    assert len(temporaries(tmp_path)) == 2


@pytest.mark.parametrize("links", [True, False])
def test_the_first_of_two_writers_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(*paths: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    for text in (b"first", b"second"):
        _files.write_bytes(tmp_path / "a", text, replace=False)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"first")]


@pytest.mark.parametrize(
    "name", ["a" * 251 + ".tif", "图" * 83 + ".png", "😀" * 63], ids=["ascii", "3 bytes", "4 bytes"]
)
def test_names_as_long_as_a_file_may_have(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "text")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_that_somebody_has_moved_and_linked_to(tmp_path: Path) -> None:
    path, far = tmp_path / "run" / "model", tmp_path / "far"
    far.mkdir()
    path.parent.mkdir()
    path.symlink_to(far)
    for text in ("one", "two"):
        write_folder(path, lambda folder, text=text: (folder / "x").write_text(text))  # type: ignore[misc]
        assert (path / "x").read_text() == text
    remove_folder(path)
    path.symlink_to(far)
    for _ in range(2):
        remove_folder(path)
        assert list(path.parent.iterdir()) == []
        path.mkdir()
    assert list(far.iterdir()) == []
