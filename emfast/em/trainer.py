"""What training changes: the weights, their average and the optimizer; on disk between two parts of a training."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from emfast._check import check, check_finite
from emfast._files import read_tensors_and_metadata, write_tensors
from emfast.em.muon import Muon
from emfast.em.state import Stopwatch

if TYPE_CHECKING:
    from emfast._m_step_config import MStepConfig


def learning_rate(config: MStepConfig, step: int, span: int) -> float:
    """Returns the learning rate of a step: it warms up, stays, and falls in a line over the last share of the training.

    Arguments:
        config: The M-step's settings.
        step: The step, from 0 on.
        span: The steps of the training.
    """
    rate = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup))
    return rate * min(1.0, (span - step) / max(1.0, config.decay * span)) if config.decay > 0 else rate


def averaging(config: MStepConfig, step: int) -> float:
    r"""Returns the weight that the average keeps at a step.

    Exponential by default, warmed up; of a power function where `ema_power` is given, which is as long as a share of
    the steps so far, so that the average of a short and of a long training forget alike:

    .. math:: \beta_k = (1 - 1 / (k + 1))^{\gamma + 1}

    Arguments:
        config: The M-step's settings.
        step: The step, from 0 on.

    References:
        | Analyzing and Improving the Training Dynamics of Diffusion Models (Karras et al., 2024), arXiv 2312.02696
    """
    if config.ema_power is not None:
        return float((1 - 1 / (step + 1)) ** (config.ema_power + 1))
    return min(config.ema, (1 + step) / (10 + step))


class Trainer:
    """Everything that training changes: the weights, their moving average, the optimizer, the step and the seconds.

    Arguments:
        network: The network, on the device to use; its weights are the starting point.
        config: The M-step's settings.
        identity: What this training is; a checkpoint of another is refused.
        span: The steps of the training, which its learning rate may fall over.
    """

    def __init__(self, network: nn.Module, config: MStepConfig, identity: str, span: int = 1) -> None:
        self.network, self.config, self.identity, self.span = network, config, identity, span
        self.parameters = list(network.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        kind = Muon if config.optimizer == "muon" else torch.optim.AdamW
        self.optimizer = kind(self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
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
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step, self.span)
        nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        kept = averaging(self.config, self.step)
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - kept)
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

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A block in which the network has the averaged weights and is in evaluation mode; training goes on after."""
        own, training = [p.detach().clone() for p in self.parameters], self.network.training
        self.finish()
        self.network.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                for p, value in zip(self.parameters, own, strict=True):
                    p.copy_(value)
            self.network.train(training)
