"""One EM run in this process: each round's pieces, every finished one on disk."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emfast import random
from emfast._check import check
from emfast._files import settle_folder, write_tensors
from emfast._records import write_record
from emfast._safetensors import checksum
from emfast._yaml import defaults
from emfast.data.rows import Rows, joined
from emfast.diffusion import Denoiser
from emfast.em.conditions import conditions_of
from emfast.em.continuous import Continuous
from emfast.em.device import prepare
from emfast.em.e_steps import ESteps, Reconstructions, clamped
from emfast.em.evaluation import Evaluator
from emfast.em.events import Event, Progress, RoundFinished
from emfast.em.first_images import begins_with_images, first_images
from emfast.em.given import Given
from emfast.em.held_out import NAMES, measure_held_out
from emfast.em.inputs import read_inputs
from emfast.em.m_step import m_step
from emfast.em.model import build_model, load_pipeline, load_whole, publish_model, reinitialise, save_model
from emfast.em.noise_estimate import estimate_sigma
from emfast.em.own_network import check_network, is_own
from emfast.em.processes import Processes
from emfast.em.run_log import RunLog
from emfast.em.state import RunFolder, Stopwatch
from emfast.samplers import default_sampler

if TYPE_CHECKING:
    from emfast.config import Config

SAMPLED = 32  # observations that an unknown noise level is estimated from


class Run:
    """The state of a run in this process; everything that matters is on disk.

    Arguments:
        config, callback: Those of `train`.
        device: The device to use.
        processes: The processes that share the run.
        given: What was given in Python.

    Its methods take:
        number, phase: The round, and "initial", "warm" or "final".
        denoiser, steps: The model that is trained, and for how many steps.
        images, ids: (N, C, H, W) reconstructions in data units, and (N,) the ids of their observations.
        row, preview: What is known of the round so far, and what its pictures show, by name.
    """

    def __init__(
        self,
        config: Config,
        callback: Callable[[Event], None] | None,
        device: torch.device,
        processes: Processes,
        given: Given | None = None,
    ) -> None:
        self.config, self.callback, self.device, self.processes = config, callback, device, processes
        given = given or Given()
        self.inputs = read_inputs(config, given)
        self.observations = self.inputs.observations
        shape = self.observations.shape
        if given.model is not None:
            self.denoiser, self.scheduler = given.model
            check_network(self.denoiser, shape)
        elif config.model is not None:
            self.denoiser, self.scheduler, model_shape = load_pipeline(config.model)
            check(model_shape[0] == shape[0], "train", "model", f"to have {shape[0]} channels", model_shape[0])
        else:
            self.denoiser, self.scheduler = build_model(config.network, shape, config.seed)
        self.conditions = conditions_of(config, self.denoiser, self.observations)
        self.evaluator = Evaluator(config.evaluation, self.inputs.reference, shape, self.device, processes)
        self.folder = RunFolder(config.output)
        data = self.inputs.fingerprints
        if config.model is not None:
            data["initial model"] = checksum(self.denoiser.state_dict())
        if self.processes.main:
            self.folder.claim(config.to_yaml(), data, defaults(config))
            self.folder.write_metrics()  # a kill, or somebody, may have left it behind the rows
        self.processes.wait()
        self.folder.check_data(data)  # other machines may have other files at the same paths
        if given.model is not None:  # the weights of a network that is not trained yet are each process's own
            self.processes.share((*self.denoiser.network.parameters(), *self.denoiser.network.buffers()))
        # Where only the user's code can build the network.
        own = given.model is not None and is_own(self.denoiser, self.scheduler)
        self.own = copy.deepcopy(self.denoiser) if own else None
        self.log, self.e_steps = RunLog(self), ESteps(self)
        self.continuous = Continuous(self)

    @property
    def note(self) -> dict[str, Any]:
        """What stands beside every model: the shape of its images, and the range of the values that they stand for."""
        origin = self.observations.origin
        note: dict[str, Any] = {"shape": list(self.observations.shape), "patch": self.config.data.patch}
        note |= {"sigma": self.sigma} if self.config.sigma == "auto" else {}
        return note if origin is None else {**note, "range": list(origin.range)}

    @property
    def sigma(self) -> float:
        """The noise level that the observations are taken to have, in the units of `sigma` in the config."""
        origin = self.observations.origin
        return self.observations.sigma * (1.0 if origin is None else origin.range.half)

    def settle_sigma(self, number: int) -> None:
        """Takes the noise level of a round for that of the observations, estimated by the model of the round before.

        By the usual sampler of the operator: that of an E-step may have been chosen for PSNR, or for the flow, and its
        samples then lack some of the posterior's spread, which counts here.
        """
        if self.config.sigma != "auto" or number == 0:
            return
        path, count = self.folder.round(number) / "sigma.json", len(self.observations)
        if self.processes.main and not path.exists():
            if number > 1:
                self.e_steps.take_sigma(number - 1)  # where the search begins
            found = estimate_sigma(
                default_sampler(type(self.observations.operator)),
                self.model(number - 1),
                self.observations,
                self.observations.ids[torch.linspace(0, count - 1, min(SAMPLED, count)).long()],
                batch_size=SAMPLED,
                seed=self.seed("round", number, "sigma"),
            )
            write_record(path, {"sigma": found})
        self.processes.wait()
        self.e_steps.take_sigma(number)

    def seed(self, *names: str | int) -> int:
        """Returns the seed of a purpose."""
        return random.derive(self.config.seed, *names)

    def progress(self, phase: str, number: int) -> Callable[[int, int], None]:
        """Returns a callback(done, total) that reports a phase."""

        def report(done: int, total: int) -> None:
            self.processes.check()
            if self.callback is not None and self.processes.main:
                self.callback(Progress(phase, number, done, total))

        return report

    def initial_round(self) -> None:
        """Round 0: the model given, or one trained on clean images, or on reconstructions under a Gaussian."""
        folder, steps = self.folder.round(0), self.config.m_step.initial_steps
        empty = dict.fromkeys(("scale", "psnr", "ssim", "misfit", "network_evaluations", "seconds_e_step"))
        row: dict[str, Any] = {"round": 0, "phase": "initial", "observations": 0, **empty}
        preview: dict[str, Tensor] = {}
        images: Tensor | Rows = torch.empty(0, *self.observations.shape)
        images = images if self.inputs.clean is None else self.inputs.clean.floats
        if begins_with_images(self):
            found, ids, seconds = first_images(self)
            row |= {"observations": len(ids), "network_evaluations": 0, "seconds_e_step": seconds}
            row |= self.evaluator.reconstructions(found, ids, self.observations) if self.processes.main else {}
            preview, images = self.preview(found, ids), joined((images, clamped(found)))
        if self.config.schedule == "continuous":
            self.continuous.initial(self.denoiser, images)
        elif self.config.model is None:
            self.maximize(0, "initial training", self.denoiser, images, steps)
        elif not (folder / "model").exists() and self.processes.main:
            save_model(self.denoiser, self.scheduler, folder / "model", self.note)
        self.processes.wait()
        self.finish(0, row, preview)

    def round(self, number: int, phase: str) -> None:
        """One E-step with the model of the round before, one M-step on its reconstructions; or both in turn."""
        self.settle_sigma(number)
        if phase == "warm" and self.config.schedule == "continuous":
            found = self.continuous.sweep(number)
        else:
            found = self.alternate(number, phase)
        row: dict[str, Any] = {"round": number, "phase": phase, "observations": len(found.ids), "scale": found.scale}
        row |= {"sigma": self.sigma} if self.config.sigma == "auto" else {}
        if self.processes.main:
            row |= self.evaluator.reconstructions(found.images, found.ids, self.observations)
        row |= {"network_evaluations": found.evaluations, "seconds_e_step": found.seconds}
        self.finish(number, row, self.preview(found.images, found.ids))

    def alternate(self, number: int, phase: str) -> Reconstructions:
        """Makes the E-step and then the M-step of a round; returns the reconstructions."""
        denoiser = self.model(number - 1)
        found = self.e_steps.reconstruct(number, phase, denoiser)
        steps = self.config.m_step.final_steps if phase == "final" else self.config.m_step.steps
        if phase == "final":
            denoiser = reinitialise(denoiser, self.scheduler, self.seed("round", number, "weights"))
        self.maximize(number, "m-step", denoiser, clamped(found.images), steps)
        return found

    def model(self, number: int) -> Denoiser:
        """Returns the model of a finished M-step, on the device."""
        return self.prepare(load_whole(self.folder.round(number) / "model", self.folder.again(number), self.own)[0])

    def prepare(self, denoiser: Denoiser) -> Denoiser:
        """Returns the denoiser on the device, computing as the run asks for."""
        return prepare(denoiser, self.device, self.config.precision, fast=self.config.accelerate)

    def maximize(self, number: int, phase: str, denoiser: Denoiser, images: Tensor | Rows, steps: int) -> None:
        """Trains the model of a round and writes it, unless that is done."""
        folder = self.folder.round(number)
        settle_folder(folder / "model")
        if not (folder / "model").exists():
            trained = m_step(
                self.prepare(denoiser),
                images,
                steps=steps,
                config=self.config.m_step,
                seed=self.seed("round", number, "m_step"),
                checkpoint=folder / "training.safetensors",
                processes=self.processes,
                conditions=self.conditions,
                callback=self.progress(phase, number),
                logged=self.log.follow(number),
            )
            if self.processes.main:
                self.log.write(number, trained)
                save_model(denoiser, self.scheduler, folder / "model", self.note)
        self.processes.wait()
        if self.processes.main:
            (folder / "training.safetensors").unlink(missing_ok=True)

    def preview(self, images: Tensor | Rows, ids: Tensor) -> dict[str, Tensor]:
        """Returns the images that the pictures of a round show."""
        shown = slice(0, self.config.evaluation.pictures)
        first = {"observation": self.observations.pictures(ids[shown]), "reconstruction": images[shown]}
        truth, mask = self.observations.truth(ids[shown]), self.observations.mask(ids[shown])
        first |= {} if mask is None else {"mask": mask}
        return first if truth is None else {"truth": truth, **first}

    def held_out(self, number: int, denoiser: Denoiser) -> dict[str, float | None]:
        """Returns how good a model is on the observations that nothing was trained on; nothing if there are none."""
        ids = self.observations.held_out
        if not len(ids):
            return {}
        if self.config.sigma == "auto" and number == 0:
            return dict.fromkeys(NAMES)  # of a noise that is a guess still, they would say how far off that is
        size = self.config.e_step.batch_size
        return measure_held_out(
            denoiser,
            self.observations,
            ids,
            batch_size=SAMPLED if size == "auto" else min(size, SAMPLED),
            seed=self.seed("held out"),
            callback=self.progress("held out", number),
        )

    def finish(self, number: int, row: dict[str, Any], preview: dict[str, Tensor]) -> None:
        """Measures the model of a round, writes its row and pictures, and publishes the model."""
        watch, folder, denoiser = Stopwatch(), self.folder.round(number), self.model(number)
        samples, distance = self.evaluator.samples(
            denoiser, self.folder, number, self.config.seed, self.progress("samples", number)
        )
        if self.processes.main:
            row |= self.held_out(number, denoiser)
            seconds, logged = self.log.read(number)
            row |= logged
            row |= {**distance, "seconds_m_step": seconds, "seconds_evaluation": watch.seconds}
            row["seconds"] = seconds + watch.seconds + (row["seconds_e_step"] or 0.0)
            shown = self.config.evaluation.pictures**2
            write_tensors(folder / "preview.safetensors", {**preview, "samples": samples[:shown]})
            self.folder.finish(row)
            self.publish()
            if self.callback is not None:
                self.callback(RoundFinished(row, folder))
        self.processes.wait()

    def publish(self) -> None:
        """Copies the newest model to `model/`, if it is not there yet, whole, and drops old reconstructions."""
        if self.processes.main:
            last = self.folder.rows()[-1]["round"]
            publish_model(self.folder.round(last) / "model", self.folder.model, last, self.folder.again(last), self.own)
            self.folder.drop(self.config.keep)
