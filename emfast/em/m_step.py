"""The M-step: training the diffusion model on images, with a checkpoint to go on from after an interruption."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from emfast import random
from emfast._check import check, check_finite
from emfast._files import read_tensors_and_metadata, write_tensors
from emfast.diffusion import Denoiser
from emfast.em.dropout import Dropout
from emfast.em.processes import Processes
from emfast.em.state import Stopwatch
from emfast.graph import Graphed

if TYPE_CHECKING:
    from emfast.config import MStepConfig


RESIDENT = 0.1  # the share of a GPU's free memory that training images may take
LOOK = 100  # steps between two looks at whether all is finite: each waits for the device


class Trainer:
    """Everything that training changes: the weights, their moving average, the optimizer, the step and the seconds.

    Arguments:
        network: The network, on the device to use; its weights are the starting point.
        config: The M-step's settings.
        identity: What this training is; a checkpoint of another is refused.
    """

    def __init__(self, network: nn.Module, config: MStepConfig, identity: str) -> None:
        self.network, self.config, self.identity = network, config, identity
        self.parameters = list(network.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.step = 0
        self.watch = Stopwatch()
        device = self.parameters[0].device
        self.total = torch.zeros((), device=device)  # of the losses: once it is NaN or infinite it stays so
        self.sound = torch.zeros((), dtype=torch.int64, device=device)  # the last step of a finite total

    def update(self, loss: Tensor, gradients: Sequence[Tensor | None]) -> None:
        """Makes one optimizer step and moves the average towards the new weights; does not wait for the device.

        Arguments:
            loss: The loss that the gradients are of, 0-dimensional.
            gradients: One for each parameter; those of a graph are overwritten by its next replay.
        """
        self.total += loss
        self.sound += self.total.isfinite()
        for p, gradient in zip(self.parameters, gradients, strict=True):
            p.grad = gradient
        rate = self.config.learning_rate * min(1.0, (self.step + 1) / max(1, self.config.warmup))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        self.step += 1

    def look(self) -> None:
        """Makes sure that the training has not diverged; waits for the device.

        Raises:
            RuntimeError: If a loss since the look before, or a number of a checkpoint, is NaN or infinite.
        """
        fix = f"Lower m_step.learning_rate, {self.config.learning_rate:g}, in another output folder"
        finite, step = bool(self.total.isfinite()), min(int(self.sound) + 1, self.step)
        check(finite, "train", "the loss", "to be finite", f"NaN or infinity at step {step}", fix, RuntimeError)
        self.total.zero_()
        numbers = [t.detach() for t in self.tensors().values() if t.is_floating_point() and t.numel()]
        finite = bool(torch.stack(torch._foreach_norm(numbers, math.inf)).isfinite().all())
        step = self.step
        check(finite, "train", "the weights", "to be finite", f"NaN or infinity at step {step}", fix, RuntimeError)

    def tensors(self) -> dict[str, Tensor]:
        """Returns what training changes, by the names that a checkpoint has for it."""
        tensors: dict[str, Tensor] = {f"network/{i}": p for i, p in enumerate(self.parameters)}
        tensors |= {f"average/{i}": p for i, p in enumerate(self.average)}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{name}": value for name, value in state.items()}
        return tensors | {f"buffer/{name}": value for name, value in self.network.named_buffers()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a checkpoint."""
        metadata = {"identity": self.identity, "step": str(self.step), "seconds": str(self.watch.seconds)}
        write_tensors(path, self.tensors(), metadata)

    @torch.no_grad()
    def load(self, path: str | os.PathLike[str]) -> None:
        """Goes back to a checkpoint.

        Raises:
            ValueError: If the file is damaged, of another training or of a diverged one; it is named.
        """
        tensors, metadata = read_tensors_and_metadata(path)
        fix = "Delete the file to start this round's training again"
        own = metadata.get("identity") == self.identity
        check(own, "train", str(path), "to be a checkpoint of this training", metadata.get("identity", "none"), fix)
        check_finite(tensors, "train", str(path), fix)
        for i, (p, average) in enumerate(zip(self.parameters, self.average, strict=True)):
            p.copy_(tensors[f"network/{i}"])
            average.copy_(tensors[f"average/{i}"])
        for name, value in self.network.named_buffers():
            value.copy_(tensors[f"buffer/{name}"])
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, place, name = key.split("/")
                state.setdefault(int(place), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.step = int(metadata["step"])
        self.sound.fill_(self.step)
        self.watch = Stopwatch(float(metadata["seconds"]))

    @torch.no_grad()
    def finish(self) -> None:
        """Puts the averaged weights into the network: they are the model."""
        for p, average in zip(self.parameters, self.average, strict=True):
            p.copy_(average)


def m_step(
    denoiser: Denoiser,
    images: Tensor,
    *,
    steps: int,
    config: MStepConfig,
    seed: int,
    checkpoint: str | os.PathLike[str],
    processes: Processes | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> float:
    """Trains the denoiser's network on images, in place, and returns the seconds it took, interruptions left out.

    Every step's images, times, noise and dropout are a function of (seed, step): a resumed training ends with the same
    weights, and another number of processes with the same up to rounding. The network ends with the averaged weights.

    Arguments:
        denoiser: The denoiser, its network on the device to use and with the weights to start from.
        images: (N, C, H, W) float32 training images, on the CPU.
        steps: The number of optimizer steps.
        config: Batch size, learning rate and so on.
        seed: The key of everything random.
        checkpoint: The file to write checkpoints to, and to go on from if it exists.
        processes: The processes that share each batch; this one alone by default.
        callback: Called as callback(steps done, steps in all).
    Raises:
        RuntimeError: If training diverges: a loss, a weight or the loss of the averaged weights is NaN or infinite. The
            last checkpoint stays.
    """
    processes = processes or Processes()
    requirement = f"to be a multiple of {processes.world}, the number of processes"
    check(config.batch_size % processes.world == 0, "m_step", "batch_size", requirement, config.batch_size)
    trainer = Trainer(denoiser.network, config, f"seed {seed} steps {steps} images {len(images)}")
    if Path(checkpoint).exists():
        trainer.load(checkpoint)
    device = trainer.parameters[0].device
    denoiser.network.train()
    batch = _Batch(trainer, denoiser, images, seed, processes)
    graphed = Graphed(batch.gradients, state=denoiser.network.buffers())

    def step(k: int) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """The loss and the gradients of step k, the means over all processes."""
        found = graphed(*batch.inputs(k))
        processes.average([tensor for tensor in found if tensor is not None])
        return found[0], found[1:]

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        while trainer.step < steps:
            trainer.update(*step(trainer.step))
            writes = trainer.step % config.checkpoint == 0 and trainer.step < steps
            if writes or trainer.step % LOOK == 0:
                trainer.look()
            if writes and processes.main:
                trainer.save(checkpoint)
            if callback is not None:
                callback(trainer.step, steps)
        trainer.finish()
        trainer.total += step(steps - 1)[0]  # what the last update led to is looked at too
        trainer.look()
    trainer.optimizer.zero_grad()
    denoiser.network.eval()
    return trainer.watch.seconds


class _Batch:
    """This process's part of the batch of every step, and the gradients that it gives."""

    def __init__(self, trainer: Trainer, denoiser: Denoiser, images: Tensor, seed: int, processes: Processes) -> None:
        self.trainer, self.denoiser, self.seed, self.processes = trainer, denoiser, seed, processes
        self.config, self.device = trainer.config, trainer.parameters[0].device
        self.batches = Batches(len(images), self.config.batch_size, seed)
        self.part = slice(processes.rank, None, processes.world)
        # In the batch, whatever the number of processes.
        self.place = torch.arange(self.config.batch_size, device=self.device)[self.part]
        self.images = _resident(images, self.device)

    def inputs(self, k: int) -> tuple[Tensor, Tensor]:
        """Returns the images of step k and its number on the device; seeds what a network may draw beside dropout."""
        torch.manual_seed(random.derive(self.seed, "network", k, self.processes.rank) % 2**63)
        x_0 = _sent(self.images[_sent(self.batches.ids(k)[self.part], self.images.device)], self.device)
        return x_0, torch.full((), k, dtype=torch.int64, device=self.device)

    def gradients(self, x_0: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        """Returns the loss of step k, and its gradients to all parameters."""
        u, noise = draws(tuple(x_0.shape[1:]), self.place, self.seed, k)
        if self.config.flip:
            x_0 = torch.where(u[:, 1, None, None, None] < 0.5, x_0.flip(-1), x_0)
        self.trainer.optimizer.zero_grad()
        dropout = Dropout(self.denoiser.network, self.place, self.seed, k)
        with dropout:
            loss = self.denoiser.loss(x_0, self.denoiser.schedule.training_times(u[:, 0]), noise).mean()
        dropout.backward(loss)
        return loss.detach(), *(p.grad for p in self.trainer.parameters)  # type: ignore[arg-type]


def _resident(images: Tensor, device: torch.device) -> Tensor:
    """Returns the images on the device, where they take little of a GPU's free memory; else where they are."""
    if device.type == "cuda" and images.nbytes <= RESIDENT * torch.cuda.mem_get_info(device)[0]:
        return images.to(device)
    return images


def _sent(x: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor on a device; a GPU still computes while it is copied there, out of pinned memory."""
    if x.device == device or device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


class Batches:
    """Which images make up each batch: every image once an epoch, in an order of (seed, epoch)."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.epoch, self.order = -1, torch.empty(0, dtype=torch.int64)

    def ids(self, k: int) -> Tensor:
        """Returns the (batch_size,) rows of batch k; one that crosses the end of an epoch goes on in the next."""
        position, last, parts = k * self.batch_size, (k + 1) * self.batch_size, []
        while position < last:
            epoch, start = divmod(position, self.count)
            stop = min(self.count, start + last - position)
            parts.append(self._order(epoch)[start:stop])
            position += stop - start
        return torch.cat(parts)

    def _order(self, epoch: int) -> Tensor:
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(random.derive(self.seed, "epoch", epoch) % 2**63)
            self.epoch, self.order = epoch, torch.randperm(self.count, generator=generator)
        return self.order


def draws(shape: tuple[int, ...], place: Tensor, seed: int, k: int | Tensor) -> tuple[Tensor, Tensor]:
    """Returns what is random about training step k: uniform numbers (B, 2) for time and flip, and noise (B, *shape).

    Arguments:
        shape: (C, H, W) of an image.
        place: (B,) the images' places in the batch, on the device to use.
        seed: The key of the training.
        k: The step, a number or a 0-dimensional tensor on the device of place.
    """
    u = random.uniform((2,), ids=place, seed=random.derive(seed, "time"), step=k)
    return u, random.normal(shape, ids=place, seed=random.derive(seed, "noise"), step=k)
