"""EM without rounds: the store of reconstructions is renewed part by part while the training goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from emfast._check import check
from emfast._files import settle_folder
from emfast.data.rows import Rows, joined, picked
from emfast.data.store import Store
from emfast.diffusion import Denoiser
from emfast.em.announcement import WEIGHTS, write_weights
from emfast.em.e_steps import Reconstructions, clamped
from emfast.em.m_step import Training
from emfast.em.model import save_model
from emfast.em.state import Stopwatch
from emfast.em.trainer import Trainer
from emfast.samplers import Sampler

if TYPE_CHECKING:
    from emfast.em.run import Run

STATE = "training.safetensors"  # of the two rounds that were finished last it stays: the next one goes on from it


class Part(NamedTuple):
    """A part of a round: these shards are renewed, then the training goes on for a while."""

    shards: list[tuple[int, int, int]]
    begin: int  # training steps of the run before it
    end: int  # and after


class Continuous:
    """The rounds of a run with the continuous schedule; everything that matters is on disk.

    There is one training. A round is one sweep through the store: the averaged model of the moment draws the
    reconstructions of one part of the observations anew, from where they were, and a share of the round's training
    steps follows, on the clean images and all reconstructions that there are.

    Arguments:
        run: The run, begun.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.config, self.folder = run, run.config, run.folder
        self.processes, self.observations = run.processes, run.observations
        clean = run.inputs.clean
        self.clean = torch.empty(0, *self.observations.shape) if clean is None else clean.floats

    def steps(self, number: int) -> int:
        """Returns the training steps done at the end of a round."""
        initial = 0 if self.config.model is not None else self.config.m_step.initial_steps
        return initial + number * self.config.m_step.steps

    def initial(self, denoiser: Denoiser, images: Tensor | Rows) -> None:
        """Begins the training: on clean images, on reconstructions under a Gaussian, or on both.

        Arguments:
            denoiser: The initial denoiser.
            images: (N, C, H, W) the images; none for a model that is given.
        """
        if not self._settled(0):
            denoiser = self.run.prepare(denoiser)
            trainer = self._trainer(denoiser)
            if (path := self.folder.round(0) / STATE).exists():
                trainer.load(path)
            self._train(0, trainer, denoiser, images, [Part([], 0, self.steps(0))], None)
        self.processes.wait()

    def sweep(self, number: int) -> Reconstructions:
        """Returns the reconstructions of a round, each part of them made as the training had come to it."""
        e_steps, denoiser = self.run.e_steps, self.run.model(number - 1)
        before = e_steps.before(number, "warm")
        sampler, ids, scale = e_steps.plan(number, "warm", denoiser, before)
        store = e_steps.store(number, "warm", len(ids))
        if not self._settled(number):
            trainer = self._trainer(denoiser)
            parts = self._parts(number, store)
            self._load(trainer, number, store, parts)
            self._train(number, trainer, denoiser, before.images, parts, (store, sampler))
        self.processes.wait()
        seconds = float(store.load("seconds").sum())
        return Reconstructions(store.rows("images"), ids, scale, e_steps.evaluations(sampler, ids), seconds)

    def _parts(self, number: int, store: Store) -> list[Part]:
        """Returns the parts of a round, whole shards each."""
        count, shards = self.config.e_step.parts, store.shards
        begin, steps = self.steps(number - 1), self.config.m_step.steps
        edges = [part * len(shards) // count for part in range(count + 1)]
        return [
            Part(shards[edges[k] : edges[k + 1]], begin + k * steps // count, begin + (k + 1) * steps // count)
            for k in range(count)
        ]

    def _trainer(self, denoiser: Denoiser) -> Trainer:
        return Trainer(
            denoiser.network, self.config.m_step, f"seed {self.run.seed('m_step')}", self.steps(self.config.rounds)
        )

    def _settled(self, number: int) -> bool:
        """Returns whether the model of a round is there."""
        settle_folder(self.folder.round(number) / "model")
        return (self.folder.round(number) / "model").exists()

    def _load(self, trainer: Trainer, number: int, store: Store, parts: list[Part]) -> None:
        """Goes back to the last checkpoint whose reconstructions are all there, or that of the round before."""
        for path in (self.folder.round(number) / STATE, earlier := self.folder.round(number - 1) / STATE):
            if path == earlier:
                there, fix = path.exists(), f"Delete {self.folder.path}: the run has to begin anew"
                check(there, "train", str(path), "to be there, for the training to go on", "no such file", fix)
            if path.exists():
                trainer.load(path)
                if all(store.has(index) for part in parts if part.begin < trainer.step for index, *_ in part.shards):
                    break
        self.processes.wait()  # all look before one writes

    def _train(
        self,
        number: int,
        trainer: Trainer,
        denoiser: Denoiser,
        before: Tensor | Rows,
        parts: list[Part],
        source: tuple[Store, Sampler] | None,
    ) -> None:
        """Makes the parts of a round that are not done yet, and writes the state of the training and the model."""
        folder, first, last = self.folder.round(number), parts[0].begin, parts[-1].end
        if trainer.step == first:
            trainer.begin()
        report = self.run.progress("sweep" if number else "initial training", number)
        training, images = None, before if source is None else joined((self.clean, before))
        for part in parts:
            if source is not None and part.shards:
                self._renew(number, trainer, denoiser, part, *source)
                index, _, stop = part.shards[-1]
                renewed = clamped(source[0].rows(shards=index + 1))
                images = joined((self.clean, renewed, picked(before, slice(stop, None))))
            if trainer.step == part.end:
                continue
            if training is None:
                training = Training(
                    trainer,
                    denoiser,
                    images,
                    seed=self.run.seed("m_step"),
                    checkpoint=folder / STATE,
                    last=last,
                    processes=self.processes,
                    conditions=self.run.conditions,
                )
            training.use(images)
            training.advance(part.end, lambda done: report(done - first, last - first), self.run.log.follow(number))
        if self.processes.main:
            trainer.save(folder / STATE)
            (folder / WEIGHTS).unlink(missing_ok=True)
        if training is not None:
            training.finish()
        else:
            trainer.finish()
        if self.processes.main:
            self.run.log.write(number, trainer)
            save_model(denoiser, self.run.scheduler, folder / "model", self.run.note)
            if number > 1:
                (self.folder.round(number - 2) / STATE).unlink(missing_ok=True)

    def _renew(
        self, number: int, trainer: Trainer, denoiser: Denoiser, part: Part, store: Store, sampler: Sampler
    ) -> None:
        """Renews a part of the store by the averaged model, unless that is done."""
        if trainer.step != part.begin:
            return
        ids, seconds = self.observations.ids, trainer.watch.seconds
        with trainer.averaged():
            size = self.run.e_steps.batch_size(sampler, denoiser, ids)
            if self.processes.main:
                write_weights(self.folder.round(number), denoiser.network, trainer.step)
            self.run.e_steps.announce(number, "warm", size, part.shards, trainer.step)
            self.run.e_steps.make(number, sampler, denoiser, ids, store, batch_size=size, shards=part.shards)
        trainer.watch = Stopwatch(seconds)
