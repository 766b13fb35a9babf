"""Joining the E-steps of a run that goes on elsewhere: no process group, no fixed number, from any machine."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from emfast import random
from emfast._check import check
from emfast.data.store import MANIFEST, Store
from emfast.diffusion import Denoiser
from emfast.em.announcement import Announcement, read_weights
from emfast.em.device import prepare, resolve_device
from emfast.em.e_step import e_step
from emfast.em.e_steps import ESteps
from emfast.em.events import Event, Progress
from emfast.em.inputs import read_inputs
from emfast.em.model import load_whole
from emfast.em.plan import next_phase
from emfast.em.processes import Processes
from emfast.em.queue import is_open, shared
from emfast.em.state import RECONSTRUCTIONS, RunFolder
from emfast.samplers import Sampler

if TYPE_CHECKING:
    from emfast.config import Config

POLL = 2.0  # seconds between two looks whether there is anything to do


def work(
    run: str | Path,
    *,
    device: str = "auto",
    accelerate: bool | None = None,
    batch_size: int | None = None,
    wait: float = 3600.0,
    callback: Callable[[Event], None] | None = None,
) -> int:
    """Makes shards of the E-steps of a run until it is finished, and returns how many observations it did.

    Of a run without rounds it makes shards of the part that is renewed, by the model of that moment.

    The run goes on in another process: `emfast.train`. What this process does is used there, and the results are the
    same without it; it may be ended at any moment.

    Arguments:
        run: The folder of the run.
        device: "auto", "cpu", "cuda", ... of this process.
        accelerate: Whether to compute with emfast's kernels; None: where they were measured to be faster.
        batch_size: Observations reconstructed together; None: as in the run. Rounding depends on it.
        wait: Seconds without anything to do after which to return.
        callback: Called with `Progress` events.
    Raises:
        ValueError: If there is no such run and none comes within `wait`, or the data here are others than the run's.
        OSError: If its folder cannot be written.
    """
    from emfast.config import Config

    path, done, idle = Path(run), 0, time.monotonic()
    guest: Guest | None = None
    begun: list[bytes] | None = None
    while True:
        if (now := _begun(path)) is not None and now != begun:  # it may begin anew, or go on with more rounds
            try:
                guest = Guest(Config.from_yaml(path / "config.yaml"), path, device, accelerate, batch_size, callback)
            except ValueError:
                if _begun(path) == now:
                    raise
                continue  # it has read the old half of what was just written
            begun = now
        if guest is not None:
            made = guest.join()
            done, idle = done + made, time.monotonic() if made else idle
            if guest.finished:
                return done
        if time.monotonic() - idle > wait:
            fix = "Give the output of `emfast train`, which may begin later with a longer wait"
            check(guest is not None, "work", str(path), "to be the folder of a run", "no config.yaml there", fix)
            return done
        time.sleep(min(POLL, wait))


def _begun(run: Path) -> list[bytes] | None:
    """Returns what the folder of a run says of its settings and its data; None if it is none yet."""
    try:
        return [(run / name).read_bytes() for name in ("config.yaml", "data.json")]
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


class Stranger(Processes):
    """A process that is none of those of a job: it waits for none of them, and writes nothing but shards."""

    @property
    def main(self) -> bool:
        """See `Processes`."""
        return False


class _Steps(ESteps):
    """The E-steps of a run that this process does not lead."""

    def whole(self, number: int) -> Store:
        """Returns the reconstructions of a finished round; those who train make again what was lost of them."""
        return Store.open(self.folder.round(number) / RECONSTRUCTIONS)


class Ready(NamedTuple):
    """What a process needs for the E-step of a round."""

    denoiser: Denoiser
    sampler: Sampler
    ids: Tensor


class Guest:
    """A run as seen by a process that joins its E-steps: what `ESteps` asks of a `Run`.

    Arguments:
        config: The config of the run.
        folder: Its folder, whatever its config calls it.
        device, accelerate, batch_size, callback: See `work`.

    Its methods take:
        number: The round.
        precision: "auto", "float32" or "bfloat16".
        phase: What is reported.
    Raises:
        ValueError: If the data are others than the run's.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        device: str,
        accelerate: bool | None,
        batch_size: int | None,
        callback: Callable[[Event], None] | None,
    ) -> None:
        self.config, self.folder, self.callback = config, RunFolder(folder), callback
        self.device, self.accelerate, self.batch_size = resolve_device(device), accelerate, batch_size
        self.processes = Stranger()
        self.denoiser: Denoiser  # of the E-step
        self.ready: tuple[Announcement, Ready] | None = None
        self.inputs = read_inputs(config)
        self.observations = self.inputs.observations
        self.folder.check_data(self.inputs.fingerprints)
        self.e_steps = _Steps(self)

    @property
    def finished(self) -> bool:
        """Whether all rounds are done."""
        rows = self.folder.rows()
        return bool(rows) and next_phase(rows, self.config) is None

    def join(self) -> int:
        """Makes shards of the E-step that goes on, if one does, until all are there; returns how many rows it made."""
        now = Announcement.read(self.folder.path)
        if now is None or not self._is_open(now):
            return 0
        try:
            return self._make(now)
        except (FileNotFoundError, ValueError):
            self.ready = None
            if Announcement.read(self.folder.path) == now and self._is_open(now):
                raise
            return 0  # the run has gone on, or has begun anew

    def _store(self, now: Announcement) -> Path:
        return self.folder.round(now.round) / RECONSTRUCTIONS

    def _is_open(self, now: Announcement) -> bool:
        """Returns whether an E-step goes on."""
        if not (self._store(now) / MANIFEST).is_file():
            return False
        store = Store.open(self._store(now))
        return is_open(store, store.shards[now.first : now.stop])

    def _make(self, now: Announcement) -> int:
        ready = self._prepared(now)
        if now.step is not None and read_weights(self.folder.round(now.round), ready.denoiser.network) != now.step:
            return 0  # the run has gone on
        store = Store.open(self._store(now))
        with shared(store, store.shards[now.first : now.stop]) as queue:
            e_step(
                ready.sampler,
                ready.denoiser,
                self.observations,
                ready.ids,
                store,
                batch_size=self.batch_size or now.batch_size,
                seed=self.seed("round", now.round, "e_step"),
                work=queue,
                callback=self.progress("e-step", now.round),
            )
        return queue.here

    def _prepared(self, now: Announcement) -> Ready:
        """Returns what the E-step of a round needs, the same for all of its parts."""
        whole = dataclasses.replace(now, first=0, stop=None, step=None)
        if self.ready is None or self.ready[0] != whole:
            self.denoiser = denoiser = self.model(now.round - 1, now.precision)
            sampler, ids, _ = self.e_steps.plan(now.round, now.phase, denoiser)
            self.ready = whole, Ready(denoiser, sampler, ids)
        return self.ready[1]

    def model(self, number: int, precision: str = "auto") -> Denoiser:
        """Returns the model of a finished M-step, on the device, computing in a precision."""
        denoiser = load_whole(self.folder.round(number) / "model", self.folder.again(number))[0]
        return prepare(denoiser, self.device, precision, fast=self.accelerate)

    def seed(self, *names: str | int) -> int:
        """Returns the seed of a purpose."""
        return random.derive(self.config.seed, *names)

    def progress(self, phase: str, number: int) -> Callable[[int, int], None]:
        """Returns a callback(done, total) that reports a phase."""

        def report(done: int, total: int) -> None:
            if self.callback is not None:
                self.callback(Progress(phase, number, done, total))

        return report
