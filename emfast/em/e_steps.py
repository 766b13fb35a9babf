"""The E-steps of a run: the reconstructions of each round, made, or made again where they were lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from emfast._check import check
from emfast._records import read_record, write_record
from emfast.data.rows import Rows, mapped
from emfast.data.store import MANIFEST, Store
from emfast.diffusion import Denoiser
from emfast.em.announcement import Announcement
from emfast.em.batch_size import choose_batch_size
from emfast.em.device import resolve_precision
from emfast.em.e_step import e_step
from emfast.em.first_images import begins_with_images, first_images
from emfast.em.queue import clear, shared
from emfast.em.shards import Shard
from emfast.em.state import RECONSTRUCTIONS
from emfast.samplers import DPS, Sampler, WarmStart, choose_scale

if TYPE_CHECKING:
    from emfast.em.run import Run
    from emfast.em.work import Guest

SHOWN = 8  # observations that every round has, so that their pictures can be compared


class Reconstructions(NamedTuple):
    """What an E-step gives: the images and the ids of their observations, and how it came to them."""

    images: Tensor | Rows  # (N, C, H, W)
    ids: Tensor  # (N,)
    scale: float | None
    evaluations: float  # of the network, per image
    seconds: float


class Before(NamedTuple):
    """The images that a round begins with, and the ids of their observations."""

    images: Tensor | Rows  # (N, C, H, W)
    ids: Tensor  # (N,)


def clamped(images: Tensor | Rows) -> Tensor | Rows:
    """Returns images with no value outside [-1, 1]."""
    return mapped(images, partial(torch.clamp, min=-1, max=1))


class ESteps:
    """The E-steps of a run in this process; everything that matters is on disk.

    Arguments:
        run: The run, begun, or joined.

    Its methods take:
        number: The round.
        phase: "initial", "warm" or "final".
        denoiser: The model of the round before.
        sampler: The sampler of the round.
        ids: (n,) ids of its observations, in the order of the store.
        store: Where its reconstructions go.
        batch_size: Observations reconstructed together.
        shards: Those to make; None: all that are missing.
        callback: Called as callback(done, total).
        count: How many observations the round has.
    """

    def __init__(self, run: Run | Guest) -> None:
        self.run, self.config, self.folder = run, run.config, run.folder
        self.processes, self.observations = run.processes, run.observations
        self.stores: dict[int, Store] = {}  # of this round and the last one: they know which shards are verified

    def reconstruct(self, number: int, phase: str, denoiser: Denoiser) -> Reconstructions:
        """Returns the reconstructions of a round, the missing ones made with the model of the round before."""
        sampler, ids, scale = self.plan(number, phase, denoiser)
        store = self.store(number, phase, len(ids))
        size = self.batch_size(sampler, denoiser, ids)
        self.announce(number, phase, size)
        callback = self.run.progress("e-step", number)
        self.make(number, sampler, denoiser, ids, store, batch_size=size, callback=callback)
        seconds = float(store.load("seconds").sum())
        return Reconstructions(store.rows("images"), ids, scale, self.evaluations(sampler, ids), seconds)

    def plan(
        self, number: int, phase: str, denoiser: Denoiser, before: Before | None = None
    ) -> tuple[Sampler, Tensor, float | None]:
        """Returns the sampler of a round, the ids of its observations in the order of the store, and the scale.

        Arguments:
            number, phase: Those of the round.
            denoiser: The model that the round begins with.
            before: What `before` returns, if that is known.
        """
        self.take_sigma(number)
        ids = self.subset(number, phase)
        scaled, scale = self.scaled(number, denoiser)
        sampler = self.warm(number, phase, scaled, before)
        if isinstance(sampler, WarmStart):  # one batch at most is mixed
            ids = torch.cat((ids[sampler.known(ids)], ids[~sampler.known(ids)]))
        return sampler, ids, scale

    def announce(
        self, number: int, phase: str, batch_size: int, shards: Sequence[Shard] = (), step: int | None = None
    ) -> None:
        """Tells those who join which shards are made now, and by which model.

        Arguments:
            number: The round.
            phase: "warm" or "final".
            batch_size: Observations reconstructed together.
            shards: The shards, which follow each other; all of them by default.
            step: The training steps after which the model is, if it is that of a moment.
        """
        if self.processes.main:
            precision = str(resolve_precision(self.config.precision, self.run.device)).removeprefix("torch.")
            first, stop = (shards[0][0], shards[-1][0] + 1) if shards else (0, None)
            Announcement(number, phase, batch_size, precision, first, stop, step).write(self.folder.path)

    def take_sigma(self, number: int) -> None:
        """Takes the noise level that was estimated before a round for that of the observations, if it is unknown."""
        if self.config.sigma == "auto":
            path = self.folder.round(number) / "sigma.json"
            self.observations.sigma = read_record(path, sigma=(int, float))["sigma"]

    def make(
        self,
        number: int,
        sampler: Sampler,
        denoiser: Denoiser,
        ids: Tensor,
        store: Store,
        *,
        batch_size: int,
        shards: Sequence[Shard] | None = None,
        callback: Callable[[int, int], None] | None = None,
    ) -> None:
        """Makes shards of a round's store together with the other processes; returns when all are there.

        Raises:
            ValueError: If a shard is there but damaged; the sentence names the file.
        """
        rank, world = self.processes.rank, self.processes.world
        shards = store.shards if shards is None else shards
        for index, *_ in shards[rank::world]:
            store.has(index)
        if not all(store.path(index).exists() for index, *_ in shards):
            with shared(store, shards, place=rank / world, check=self.processes.check) as queue:
                e_step(
                    sampler,
                    denoiser,
                    self.observations,
                    ids,
                    store,
                    batch_size=batch_size,
                    seed=self.run.seed("round", number, "e_step"),
                    work=queue,
                    callback=callback,
                )
        if self.processes.main:
            clear(store, shards)

    def whole(self, number: int) -> Store:
        """Returns the reconstructions of a finished round; what was lost of them is made again, the same as before."""
        phase = self.folder.rows()[number]["phase"]
        store = self.store(number, phase, len(self.subset(number, phase)))
        missing = bool(store.missing)
        self.processes.wait()  # all look before one writes
        if missing and self.config.schedule == "continuous" and phase == "warm":
            check(False, "train", str(store.folder), "to be whole", "shards missing", self.folder.again(number))
        if missing:
            sigma = self.observations.sigma
            self.reconstruct(number, phase, self.run.model(number - 1))
            self.observations.sigma = sigma
        return store

    def warm(self, number: int, phase: str, sampler: Sampler, before: Before | None = None) -> Sampler:
        """Returns the sampler, made to begin at the reconstructions of the round before if it can and there are any.

        Arguments:
            number: The round.
            phase: "warm" or "final".
            sampler: The sampler.
            before: Those reconstructions, where they are known.
        """
        noise = self.config.e_step.warm_start
        if noise is None or not sampler.begins_at_noise:
            return sampler
        images, ids = before or self.before(number, phase)
        return WarmStart(sampler, images, ids, noise) if len(ids) else sampler

    def before(self, number: int, phase: str) -> Before:
        """Returns the images that a round begins with; a first one with none, or those under a Gaussian."""
        if number > 1:
            store = self.whole(number - 1)
            return Before(clamped(store.rows("images")), store.load("ids"))
        if phase == "warm" and self.config.schedule == "continuous" and begins_with_images(self.run):
            images, ids, _ = first_images(self.run)
            return Before(clamped(images), ids)
        return Before(torch.empty(0, *self.observations.shape), torch.empty(0, dtype=torch.int64))

    def evaluations(self, sampler: Sampler, ids: Tensor) -> float:
        """Returns the network evaluations per image, the mean over a round's observations."""
        if not isinstance(sampler, WarmStart):
            return sampler.evaluations
        share = float(sampler.known(ids).double().mean())
        begun = sampler.evaluations_when_warm(self.run.denoiser.schedule, self.observations.sigma)
        return share * begun + (1 - share) * sampler.evaluations

    def batch_size(self, sampler: Sampler, denoiser: Denoiser, ids: Tensor) -> int:
        """Returns the batch size of the E-step, the same for the whole run: rounding depends on it."""
        size, path = self.config.e_step.batch_size, self.folder.path / "batch_size.json"
        if size != "auto":
            return size
        if self.processes.main and not path.exists():
            write_record(path, {"batch_size": choose_batch_size(sampler, denoiser, self.observations, ids)})
        self.processes.wait()
        size = read_record(path, batch_size=int)["batch_size"]
        check(size > 0, "train", f"batch_size of {path}", "to be positive", size)
        return int(size)

    def subset(self, number: int, phase: str) -> Tensor:
        """Returns the ids of a round's observations: a few that all rounds have, and a random rest."""
        ids, wanted = self.observations.ids, self.config.e_step.subset
        if phase == "final" or self.config.schedule == "continuous" or wanted is None or wanted >= len(ids):
            return ids
        shown = min(SHOWN, wanted)
        generator = torch.Generator().manual_seed(self.run.seed("round", number, "subset") % 2**63)
        rest = shown + torch.randperm(len(ids) - shown, generator=generator)[: wanted - shown]
        return torch.cat((ids[:shown], ids[rest]))

    def store(self, number: int, phase: str, count: int) -> Store:
        """Returns the store of a round's reconstructions, created by the main process."""
        if number in self.stores:
            return self.stores[number]
        folder = self.folder.round(number) / RECONSTRUCTIONS
        identity = {"round": number, "phase": phase, "seed": self.config.seed}
        size = self.config.e_step.shard_size
        if (folder / MANIFEST).exists():  # it may have begun with another size
            size = Store.open(folder).shard_size
        dtype = getattr(torch, self.config.e_step.reconstructions)
        arguments: dict[str, Any] = {"count": count, "shard_size": size, "identity": identity, "dtype": dtype}
        if self.processes.main:
            Store(folder, **arguments)
        self.processes.wait()
        store = Store(folder, **arguments)
        self.stores = {number: store, **{k: kept for k, kept in self.stores.items() if k == number - 1}}
        return store

    def scaled(self, number: int, denoiser: Denoiser) -> tuple[Any, float | None]:
        """Returns the sampler with this round's scale, tried on a few observations if candidates are given."""
        sampler, candidates = self.config.sampler, self.config.e_step.scales
        if not candidates or not isinstance(sampler, DPS):
            return sampler, getattr(sampler, "scale", None)
        path = self.folder.round(number) / "scale.json"
        if self.processes.main and not path.exists():
            ids = self.subset(number, "final")[: self.config.e_step.scale_images]
            y = self.observations.read(ids).to(self.run.device)
            seed = self.run.seed("round", number, "scale")
            operator = self.observations.operator
            scale, misfits = choose_scale(
                sampler,
                denoiser,
                y,
                operator,
                candidates=candidates,
                ids=ids.to(self.run.device),
                seed=seed,
                callback=self.run.progress("scale", number),
            )
            write_record(path, {"scale": scale, "candidates": candidates, "misfits": [str(m) for m in misfits]})
        self.processes.wait()
        scale = float(read_record(path, scale=(int, float))["scale"])
        return dataclasses.replace(sampler, scale=scale), scale
