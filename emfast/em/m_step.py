"""The M-step: training the diffusion model on images, with a checkpoint to go on from after an interruption."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emfast import random
from emfast._check import check
from emfast.data.rows import Rows, pieces, small
from emfast.diffusion import Denoiser
from emfast.em.batches import Batches, draws
from emfast.em.conditions import Conditions
from emfast.em.dropout import Dropout, has_dropout
from emfast.em.noise_levels import training_times
from emfast.em.processes import Processes
from emfast.em.targets import stable_targets
from emfast.em.trainer import Trainer
from emfast.em.training_log import by_noise_level
from emfast.graph import Graphed

if TYPE_CHECKING:
    from emfast._m_step_config import MStepConfig


RESIDENT = 0.1  # the share of a GPU's free memory that training images may take
LOOK = 100  # steps between two looks at whether all is finite, and two rows of the log: each waits for the device


def m_step(
    denoiser: Denoiser,
    images: Tensor | Rows,
    *,
    steps: int,
    config: MStepConfig,
    seed: int,
    checkpoint: str | os.PathLike[str],
    processes: Processes | None = None,
    conditions: Conditions | None = None,
    callback: Callable[[int, int], None] | None = None,
    logged: Callable[[dict[str, Any]], None] | None = None,
) -> Trainer:
    """Trains the denoiser's network on images, in place, and returns what trained it, with its seconds and its log.

    Every step's images, times, noise and dropout are a function of (seed, step): a resumed training ends with the same
    weights, and another number of processes with the same up to rounding. The network ends with the averaged weights.

    Arguments:
        denoiser: The denoiser, its network on the device to use and with the weights to start from.
        images: (N, C, H, W) float32 training images, on the CPU or in files, of which each step reads its batch.
        steps: The number of optimizer steps.
        config: Batch size, learning rate and so on.
        seed: The key of everything random.
        checkpoint: The file to write checkpoints to, and to go on from if it exists.
        processes: The processes that share each batch; this one alone by default.
        conditions: What a conditional network is shown.
        callback: Called as callback(steps done, steps in all).
        logged: Called with every new row of the log.
    Raises:
        RuntimeError: If training diverges: a loss, a weight or the loss of the averaged weights is NaN or infinite. The
            last checkpoint stays.
    """
    trainer = Trainer(denoiser.network, config, f"seed {seed} steps {steps} images {len(images)}", steps)
    if Path(checkpoint).exists():
        trainer.load(checkpoint)
    where: dict[str, Any] = {"checkpoint": checkpoint, "processes": processes, "conditions": conditions}
    training = Training(trainer, denoiser, images, seed=seed, last=steps, **where)
    training.advance(steps, lambda done: callback(done, steps) if callback is not None else None, logged)
    training.finish()
    return trainer


class Training:
    """A training that goes on in parts, and whose images may change between them.

    Arguments:
        trainer: What it changes.
        denoiser: The denoiser of the trainer's network.
        images: (N, C, H, W) float32 training images, on the CPU or in files.
        seed: The key of everything random.
        checkpoint: The file to write checkpoints to, every few steps but for the last.
        last: The steps done at the end of it.
        processes: The processes that share each batch; this one alone by default.
        conditions: What a conditional network is shown.
    """

    def __init__(
        self,
        trainer: Trainer,
        denoiser: Denoiser,
        images: Tensor | Rows,
        *,
        seed: int,
        checkpoint: str | os.PathLike[str],
        last: int,
        processes: Processes | None = None,
        conditions: Conditions | None = None,
    ) -> None:
        self.trainer, self.checkpoint, self.last = trainer, checkpoint, last
        self.processes = processes or Processes()
        world, size = self.processes.world, trainer.config.batch_size
        check(size >= world, "m_step", "batch_size", f"to be at least {world}, the number of processes", size)
        self.batch = _Batch(trainer, denoiser, images, seed, self.processes, conditions)
        self.graphed = Graphed(self.batch.gradients, state=denoiser.network.buffers())

    def use(self, images: Tensor | Rows) -> None:
        """Takes other images for the steps to come, (N, C, H, W) on the CPU or in files."""
        self.batch.use(images)

    def step(self, k: int) -> tuple[Tensor, tuple[Tensor | None, ...], Tensor]:
        """Returns the loss of step k, the gradients and the losses by noise level, the means over all processes."""
        found = self.graphed(*self.batch.inputs(k))
        self.processes.average([tensor for tensor in found if tensor is not None])
        return found[0], found[2:], found[1]

    def advance(
        self,
        until: int,
        callback: Callable[[int], None],
        logged: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Trains until so many steps are done.

        Arguments:
            until: The steps done at the end.
            callback: Called as callback(steps done).
            logged: Called with every new row of the log.
        """
        trainer, config = self.trainer, self.trainer.config
        trainer.network.train()
        device = self.batch.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            while trainer.step < until:
                trainer.update(*self.step(trainer.step))
                writes = trainer.step % config.checkpoint == 0 and trainer.step < self.last
                if writes or trainer.step % LOOK == 0 or trainer.step == until:
                    trainer.look()
                    row = trainer.note()
                    if logged is not None:
                        logged(row)
                if writes and self.processes.main:
                    trainer.save(self.checkpoint)
                callback(trainer.step)
        # What a network counts or averages as it is trained, such as batch normalisation, each process has from its own
        # part of the batches: all go on with those of the one that writes them.
        self.processes.share(trainer.network.buffers())

    def finish(self) -> None:
        """Ends with the averaged weights in the network, in evaluation mode; what the last update led to is looked at.

        Raises:
            RuntimeError: If the loss of the averaged weights is NaN or infinite.
        """
        trainer, device = self.trainer, self.batch.device
        trainer.finish()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            trainer.total += self.step(trainer.step - 1)[0]
        trainer.look()
        trainer.optimizer.zero_grad()
        trainer.network.eval()


class _Batch:
    """This process's part of the batch of every step, and the gradients that it gives."""

    def __init__(
        self,
        trainer: Trainer,
        denoiser: Denoiser,
        images: Tensor | Rows,
        seed: int,
        processes: Processes,
        conditions: Conditions | None = None,
    ) -> None:
        self.conditions = conditions
        self.trainer, self.denoiser, self.seed, self.processes = trainer, denoiser, seed, processes
        self.config, self.device = trainer.config, trainer.parameters[0].device
        self.drops = True  # until a step has dropped nothing: every function of torch goes through the context
        self.use(images)
        self.part = slice(processes.rank, None, processes.world)
        # In the batch, whatever the number of processes.
        self.place = torch.arange(self.config.batch_size, device=self.device)[self.part]
        # Where the number of processes does not divide the batch, the mean over processes is not that over images.
        self.weight = len(self.place) * processes.world / self.config.batch_size

    def use(self, images: Tensor | Rows) -> None:
        """Takes the images of the steps to come."""
        self.batches = Batches(len(images), self.config.batch_size, self.seed)
        self.images = _resident(images, self.device)
        self.all: Tensor | None = None  # on the device, if targets are means over all of them

    def inputs(self, k: int) -> tuple[Tensor, ...]:
        """Returns the images of step k, its number, images that targets are means over, parameters of observations.

        Seeds what a network may draw beside dropout.
        """
        torch.manual_seed(random.derive(self.seed, "network", k, self.processes.rank) % 2**63)
        ids = self.batches.ids(k)
        step = torch.full((), k, dtype=torch.int64, device=self.device)
        parameters: list[Tensor] = []
        if self.conditions is not None:
            parameters = self.conditions.parameters(len(ids), self.part, self.seed, k, self.device)
        return self._rows(ids[self.part]), step, *self._others(ids, k), *parameters

    def _others(self, ids: Tensor, k: int) -> list[Tensor]:
        """Returns the images that the targets of step k are means over: all, or those of the batch and some."""
        count = self.config.target_images
        if count == 0:
            return []
        if count >= self.batches.count:
            if self.all is None:
                self.all = _sent(self.images[:], self.device)
            return [self.all]
        generator = torch.Generator().manual_seed(random.derive(self.seed, "targets", k) % 2**63)
        return [self._rows(torch.cat((ids, torch.randint(self.batches.count, (count,), generator=generator))))]

    def _rows(self, ids: Tensor) -> Tensor:
        return _sent(self.images[_sent(ids, self.images.device)], self.device)

    def gradients(self, x_0: Tensor, k: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Returns the loss of step k, that of each noise level, and its gradients to all parameters."""
        u, noise = draws(tuple(x_0.shape[1:]), self.place, self.seed, k)
        count = int(self.config.target_images > 0)
        others, parameters = tensors[:count], list(tensors[count:])
        if self.config.flip:
            x_0 = torch.where(u[:, 1, None, None, None] < 0.5, x_0.flip(-1), x_0)
            others = tuple(torch.cat((images, images.flip(-1))) for images in others)
        t = training_times(self.denoiser.schedule, u[:, 0], self.config)
        condition, shown = None, torch.zeros_like(t, dtype=torch.bool)[:, None, None, None]
        if self.conditions is not None:
            condition, shown = self.conditions.show(x_0, parameters, self.place, self.seed, k)
        for images in others:  # means given x_t alone: no target where an observation is given too
            means = stable_targets(self.denoiser.schedule, x_0, t, noise, images)
            x_0, noise = (torch.where(shown, own, mean) for own, mean in zip((x_0, noise), means, strict=True))
        self.trainer.optimizer.zero_grad()
        network = self.denoiser.network
        dropout = Dropout(network, self.place, self.seed, k) if self.drops else None
        with dropout or nullcontext():
            losses = self.denoiser.loss(x_0, t, noise, condition)
            loss = losses.mean() if self.weight == 1 else self.weight * losses.mean()
        if dropout is None:
            loss.backward()
        else:
            dropout.backward(loss)
            self.drops = dropout.used or has_dropout(network)
        levels = self.weight * by_noise_level(self.denoiser.schedule, t, losses).to(loss.dtype)
        return loss.detach(), levels, *(p.grad for p in self.trainer.parameters)  # type: ignore[arg-type]


def _resident(images: Tensor | Rows, device: torch.device) -> Tensor | Rows:
    """Returns the images on the device, where they take little of a GPU's free memory; else where they are."""
    if device.type == "cuda" and images.nbytes <= RESIDENT * torch.cuda.mem_get_info(device)[0]:
        resident = torch.empty(images.shape, dtype=images.dtype, device=device)
        for start, part in pieces(images):
            resident[start : start + len(part)] = part.to(device)
        return resident
    return small(images) if isinstance(images, Rows) else images


def _sent(x: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor on a device; a GPU still computes while it is copied there, out of pinned memory."""
    if x.device == device or device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)
