"""E-steps that several processes share without a process group: the models are those of one process."""

import errno
import os
import signal
import subprocess

import pytest
from tiny_run import one_sentence

from cluster.hosts import PARTS, Host, config, same, until

TEN_MINUTES = 600.0


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run that one process made."""
    folder = tmp_path_factory.mktemp("alone")
    with Host(["train", "--config", config(folder, 0.0)], folder / "log") as host:
        assert host.end() == 0, host.said
    return folder


def shards(folder, number=1):
    return list((folder / "run" / "rounds" / f"{number:03d}" / "reconstructions").glob("shard-*"))


def busy(folder, host):
    """Whether a process has begun a batch."""
    return (folder / "note" / str(host.process.pid)).exists()


def joined(folder, name, **settings):
    return Host(["work", folder / "run", "--wait", "5"], folder / name, machine=name * 8, **settings)


def test_two_that_join(alone, tmp_path):
    with (
        Host(["train", "--config", config(tmp_path, 0.0, 3)], tmp_path / "log") as train,
        joined(tmp_path, "a", clock=TEN_MINUTES) as first,
        joined(tmp_path, "b", clock=-TEN_MINUTES) as second,
    ):
        assert train.end() == 0, train.said
        assert first.end() == second.end() == 0, first.said + second.said
        assert busy(tmp_path, first)
        assert busy(tmp_path, second)
    assert same(alone, tmp_path)
    assert not list((tmp_path / "run").rglob("claims-*"))
    assert not list((tmp_path / "run").rglob(".tmp-*"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_one_that_ends_or_stops_in_a_batch(number, alone, tmp_path):
    with (
        Host(["train", "--config", config(tmp_path, 0.3, 2)], tmp_path / "log") as train,
        joined(tmp_path, "a") as guest,
    ):
        until(lambda: busy(tmp_path, guest))
        guest.send(number)
        assert train.end() == 0, train.said
        guest.send(signal.SIGCONT)  # its result comes late
        assert guest.end() == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGSTOP: 0}[number], guest.said
    assert same(alone, tmp_path)


def test_the_one_that_leads_is_killed(alone, tmp_path):
    """Those that joined end its E-step; another one, elsewhere, goes on."""
    words = ["train", "--config", config(tmp_path, 0.3, 2)]
    with Host(words, tmp_path / "log", machine="00000001") as train, joined(tmp_path, "a") as guest:
        until(lambda: busy(tmp_path, guest))
        train.send(signal.SIGKILL)
        until(lambda: len(shards(tmp_path)) == 8)
        with Host(words, tmp_path / "again", machine="00000002", clock=-TEN_MINUTES) as again:
            assert again.end() == 0, again.said
            assert guest.end() == 0, guest.said
    assert same(alone, tmp_path)


def test_a_full_disk(alone, tmp_path):
    """Of one that joined: it says so and ends, and the others go on."""

    def fill():
        def full(*arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        os.fsync = full

    with (
        Host(["train", "--config", config(tmp_path, 0.3, 2)], tmp_path / "log") as train,
        joined(tmp_path, "a", before=fill) as guest,
    ):
        assert guest.end() == 2
        assert one_sentence(guest.said.splitlines()[-1], ["No space left on device", "shard-", "Free space"])
        assert train.end() == 0, train.said
    assert same(alone, tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts a small file system")
def test_a_small_disk_that_is_full(alone, tmp_path):
    """Of all: the run ends with a sentence, and goes on when there is space."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        words = ["train", "--config", config(disk, 0.0)]
        (disk / "filling").write_bytes(bytes(1_900_000))
        with Host(words, tmp_path / "log") as train:
            assert train.end() == 2
            assert one_sentence(train.said.splitlines()[-1], ["No space left on device"])
        (disk / "filling").unlink()
        with Host(words, tmp_path / "log") as train:
            assert train.end() == 0, train.said
        assert same(alone, disk)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.fixture(scope="module")
def continuous(tmp_path_factory):
    """A run without rounds that one process made."""
    folder = tmp_path_factory.mktemp("continuous")
    with Host(["train", "--config", config(folder, 0.0, **PARTS)], folder / "log") as host:
        assert host.end() == 0, host.said
    return folder


@pytest.mark.parametrize("number", [signal.SIGKILL, None])
def test_two_that_join_a_run_without_rounds(number, continuous, tmp_path):
    """The one that leads is killed in the second sweep, or is not."""
    words = ["train", "--config", config(tmp_path, 0.15, 2, **PARTS)]
    with (
        Host(words, tmp_path / "log") as train,
        joined(tmp_path, "a") as first,
        joined(tmp_path, "b") as second,
    ):
        if number is not None:
            until(lambda: len(shards(tmp_path, 2)) == 4)
            train.send(number)
            with Host(words, tmp_path / "again") as again:
                assert again.end() == 0, again.said
        else:
            assert train.end() == 0, train.said
        assert first.end() == second.end() == 0, first.said + second.said
        made = [int(host.said.split()[-2]) for host in (first, second)]
        assert sum(made) > 0, made  # of 48, in 6 parts; who is there in time is chance
    assert same(continuous, tmp_path)
    assert not list((tmp_path / "run").rglob("claims-*"))
    assert not list((tmp_path / "run").rglob("moment.*"))


def test_what_cannot_be_joined(alone, tmp_path):
    with Host(["work", tmp_path / "nowhere", "--wait", "0"], tmp_path / "log") as guest:
        assert guest.end() == 2
        assert one_sentence(guest.said, ["work: expected", "nowhere", "to be the folder of a run"])
    with Host(["work", alone / "run"], tmp_path / "log") as guest:  # a run that is finished
        assert guest.end() == 0
        assert guest.said == "Done: 0 observations\n"
