"""The queue of shards: nothing is lost, nothing is claimed twice, whoever dies, stalls or sees a folder late."""

import threading
from types import SimpleNamespace

import pytest
import scale
import torch

from emfast._files import remove_folder
from emfast._process import machine
from emfast.data.store import Store
from emfast.em import queue as module
from emfast.em.lease import ENDED, LEFT, Lease, Shared, Watch
from emfast.em.queue import Queue, shared

SHARDS = [(index, 10 * index, 10 * index + 10) for index in range(4, 24)]


def queue(folder, made, **options):
    folder.mkdir(exist_ok=True)
    files = Shared(folder)
    lease = Lease(files)
    lease.begin()
    return Queue(SHARDS, lambda: made, files, lease, Watch(files), **options)


@pytest.mark.parametrize("age", [0.0, 5.0, 1e9])
@pytest.mark.parametrize("hours", [100.0, 0.1])
def test_all_is_made_however_old_a_listing_is(age, hours):
    """Of the claims, that is: that a shard is there is seen in listings only."""
    case = scale.Case(workers=8, batches=10, hours=hours)
    simulation = scale.Simulation(case, age=5.0)
    simulation.claims.age = age
    found = simulation.run()
    assert len(simulation.store.files) == len(simulation.shards)
    assert (found.deaths > 0) == (hours < 1)
    assert found.efficiency > (0.85 if hours > 1 else 0.5)
    assert found.doubled < 0.05 + found.deaths / len(simulation.shards)


def test_a_shard_is_claimed_once(tmp_path):
    queues, taken = [queue(tmp_path, [], place=place) for place in (0.0, 0.0, 0.5)], []

    def work(mine):
        while (shard := mine.take()) is not None:
            taken.append(shard)
            mine.made(shard[0])

    threads = [threading.Thread(target=work, args=(mine,)) for mine in queues]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == SHARDS
    assert sum(mine.here for mine in queues) == 200


def test_what_others_made_is_not_made_again(tmp_path):
    made = [index for index, *_ in SHARDS[:-2]]
    mine = queue(tmp_path, made)
    mine.look()
    assert mine.elsewhere == 180
    assert mine.missing == SHARDS[-2:]
    assert [mine.take(), mine.take(), mine.take()] == [*SHARDS[-2:], None]


def test_the_claims_of_a_process_that_ended_are_free(tmp_path):
    first, second = queue(tmp_path, []), queue(tmp_path, [], sleep=lambda seconds: None)
    held = [first.take() for _ in range(3)]
    first.lease.end()
    second.recover()
    assert sorted(second.take() for _ in SHARDS) == SHARDS
    assert second.take() is None
    assert {path.name for path in tmp_path.glob("*.1")} == {f"{index:05d}.1" for index, *_ in held}


def test_a_slow_process_is_helped_once(tmp_path):
    time = SimpleNamespace(now=0.0)
    options = {"clock": lambda: time.now, "sleep": lambda seconds: setattr(time, "now", time.now + 1)}
    made = []
    slow, fast, third = (queue(tmp_path, made, **options) for _ in range(3))
    shard = slow.take()
    while (other := fast.take()) is not None:
        time.now += 10
        made.append(other[0])
        fast.made(other[0])
    assert fast.rest() == shard  # 10 seconds each, and it has waited 15
    third.usual, third.sleep = 0.1, lambda seconds: next(iter(()))
    with pytest.raises(StopIteration):  # it waits for the others
        third.rest()
    assert not list(tmp_path.glob("*.2"))


def test_who_is_dead(tmp_path):
    time = SimpleNamespace(now=0.0)
    files = Shared(tmp_path)
    watch = Watch(files, patience=45, clock=lambda: time.now)
    gone, here = f"{machine()}.1.0", "01234567.1.0"
    for name, text in {"a": ENDED, "b": LEFT, "c": f"{gone} 0 1", "d": f"{here} 0 1", "e": ""}.items():
        assert files.create(name, text)
    assert [watch.is_dead(name) for name in "abcdef"] == [True, False, True, False, False, False]
    time.now = 1000.0  # it was not the others, but the folder, that stood still: all are seen for the second time
    assert not any(watch.is_dead(name) for name in "def")
    files.write("d", f"{here} 0 2")
    for moment in (1005.0, 1010.0, 1015.0):
        time.now = moment
        dead = [watch.is_dead(name) for name in "def"]
    assert dead == [False, True, True]
    assert not watch.is_dead("b")


def test_a_process_that_hangs_stops_to_say_that_it_is_alive(tmp_path):
    time = SimpleNamespace(now=0.0)
    lease = Lease(Shared(tmp_path), stall=10, clock=lambda: time.now)
    lease.begin()
    read = (tmp_path / lease.name).read_text
    before = read()
    lease.renew()
    assert read() != before
    assert len(read()) == len(before)
    time.now, before = 11.0, read()
    lease.renew()
    assert read() == before
    lease.worked()
    lease.renew()
    assert read() != before


def test_a_folder_that_is_gone_ends_nothing(tmp_path):
    """Those who lead have removed it: all is made."""
    made = []
    mine = queue(tmp_path / "claims", made)
    shard = mine.take()
    for path in (tmp_path / "claims").iterdir():
        path.unlink()
    (tmp_path / "claims").rmdir()
    made += [index for index, *_ in SHARDS]
    mine.made(shard[0])
    mine.lease.renew()
    assert mine.rest() is None


def test_one_that_joined_is_so_slow_that_the_run_has_gone_on(tmp_path, monkeypatch):
    """Others have made its shard, and the reconstructions of that round are dropped by now."""
    store = Store(tmp_path / "store", count=6, shard_size=2, identity={})
    with shared(store, place=0.0), shared(store) as guest:
        index, *_ = guest.take()
        remove_folder(store.folder)
        with pytest.raises(FileNotFoundError, match=r"Store.write: expected .* to be a store, got nothing there"):
            store.write(index, {"images": torch.zeros(2, 1, 4, 4)})
        assert not store.folder.exists()
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: pytest.fail("it waits for ever")))
        assert guest.rest() is None
