"""Processes that run `emfast` as if each were on a machine of its own."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from contracts import rms_norm
from tiny_run import CONFIG, blank_pictures, write_config

from emfast import _process, cli
from emfast._files import read_tensors
from emfast.em import Predicted, lease, lock, loop, meeting

TINY = {  # 8 batches in round 1, 12 in the last; steps that move the weights
    "e_step": {"batch_size": 2, "shard_size": 2, "subset": 16},
    "m_step": CONFIG["m_step"] | {"warmup": 1, "learning_rate": 1e-3},
}
PARTS = {  # 4 batches in each of the 3 parts of a sweep
    "schedule": "continuous",
    "rounds": 2,
    "final_rounds": 0,
    "e_step": {"batch_size": 2, "shard_size": 2, "parts": 3, "warm_start": 2.0},
}


class Host:
    """A process, forked so that the imports are paid once; killed at the end of a block at the latest.

    Arguments:
        words: Those after `emfast`.
        log: The file for what it prints.
        machine: Of another one no process is seen, and none of its temporary files is known to be left over.
        clock: Seconds that its clock is ahead, for files too.
        variables: Of its environment.
        before: Called in the process, before all.
    """

    def __init__(self, words, log, *, machine="", clock=0.0, variables=None, before=None):
        self.log = Path(log)

        def run():
            output = os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(output, number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            torch.set_num_threads(1)
            os.environ.update(variables or {})
            shift(clock)
            hurry()
            if machine:
                _process.machine = lambda: machine
            if before is not None:
                before()
            with blank_pictures():
                code = cli.main([str(word) for word in words])
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

        self.process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
        self.process.start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for number in (signal.SIGCONT, signal.SIGKILL):
            self.send(number)
        self.process.join()

    def send(self, number):
        """Sends a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def end(self, seconds=150.0):
        """Waits for the end; returns the exit code."""
        self.process.join(seconds)
        return self.process.exitcode

    @property
    def said(self):
        """What it has printed so far."""
        return self.log.read_text() if self.log.exists() else ""


def shift(seconds):
    """Puts the clock forward, that of files too."""
    now, touch = time.time, os.utime

    def utime(path, times=None, **rest):
        if times is None and not rest:
            rest = {"ns": (int(time.time() * 1e9),) * 2}
        touch(path, times, **rest)

    if seconds:
        time.time, os.utime = lambda: now() + seconds, utime


def hurry(patience=2.0):
    """Makes all that waits wait a fraction of it.

    Arguments:
        patience: Seconds without a sign of life after which a process is dead.
    """
    lease.Lease.__init__.__kwdefaults__["beat"] = 0.2
    lease.Watch.__init__.__kwdefaults__["patience"] = patience
    lock.held.__wrapped__.__kwdefaults__.update(beat=0.2, patience=patience)
    sys.modules["emfast.em.work"].POLL = 0.05  # the package has a function of that name
    meeting.GRACE = 1.0
    # A sampler that waits for company in its first batch would wait while its steps are timed.
    loop.predict = lambda run: Predicted(0, 0, "cpu", {}, 0, 0.0, "nothing")


def config(folder, pause, company=1, **changes):
    """Writes the config of a run whose batches take some seconds, and note who makes them; returns the file.

    Arguments:
        folder: Where to; the run is in it.
        pause: Seconds of a batch.
        company: So many processes begin their first batch together.
        changes: At the top level.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "note").mkdir(exist_ok=True)
    sampler = {"class_path": "slow.Slow", "init_args": {"steps": 3, "pause": pause, "note": str(folder / "note")}}
    sampler["init_args"]["company"] = company
    return write_config(folder, **{**TINY, "sampler": sampler, **changes})


def until(condition, seconds=100.0) -> None:
    """Waits until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def models(folder) -> Iterator[dict[str, torch.Tensor]]:
    """Yields the weights of all rounds of a run."""
    for path in sorted((folder / "run" / "rounds").glob("*/model/unet/*.safetensors")):
        yield read_tensors(path)


def same(one, two):
    """Whether two runs have the same models, bit by bit."""
    first, second = list(models(one)), list(models(two))
    equal = (torch.equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a)
    return len(first) == 3 and all(equal)


def close(one, two):
    """Whether two runs have the same models but for rounding, a hundredth of what their training has moved."""
    first, second = ([torch.cat([w.flatten() for w in model.values()]) for model in models(run)] for run in (one, two))
    moved = rms_norm(first[1] - first[0])
    return len(first) == len(second) == 3 and all(
        rms_norm(a - b) <= moved / 100 for a, b in zip(first, second, strict=True)
    )
