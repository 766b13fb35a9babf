"""The denoiser: any trained network as the estimate of the clean image from a noisy one."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from emfast._check import check
from emfast.diffusion.labels import asks_for_labels, check_labels, label_arguments
from emfast.diffusion.loading import is_pipeline, read_folder, read_pipeline
from emfast.diffusion.schedule import LEAST, EDMSchedule, Prediction, Schedule
from emfast.diffusion.schedulers import read_scheduler

KINDS = ("eps", "v", "x0", "flow", "edm")


class Denoiser(nn.Module):
    r"""The posterior mean of the clean image under the model, :math:`\hat x_0(x_t, t) \approx E[x_0 | x_t]`.

    Arguments:
        network: Anything called as network(x_t, t) with t of shape (B,), returning a tensor, a tuple or a diffusers
            output object: a module or a function. Of twice as many output channels the second half, a learned variance,
            is ignored. Or a diffusers pipeline, which has its own schedule.
        schedule: A `Schedule`, or a diffusers scheduler, whose prediction type is then used too.
        prediction: What the network predicts: "eps", "v" (sqrt(1 - a) and sqrt(a) mixed), "x0", "flow" (the velocity
            eps - x_0 of flow matching), or "edm" (the raw network inside EDM's preconditioning, called with
            log(sigma) / 4). A network that applies the preconditioning itself is an "x0" network. By default "eps" for
            a `VPSchedule`, "flow" for a `FlowSchedule`.
        dtype: The dtype the network computes in, by autocast, e.g. bfloat16; its own by default. Everything outside the
            network stays in the dtype of the images.
        sigma_data: The standard deviation of the data in EDM's preconditioning; 0.5 by default.
        labels: Class labels, the third argument of the network: a whole number for all images, or a tensor with one for
            each of the batch (`labelled` exchanges them between calls). None for none.
        multiple: The sides of the images that the network takes are multiples of this: others are given a border of
            zeros, which is cut off again. 1 for no border; `halvings` says what a U-Net of diffusers takes.
        time_table: The number of times that a network knows which looks them up in a table: it is given the nearest
            whole one. By default found: an `nn.Embedding` whose name speaks of time or steps.
        condition: The number of channels behind those of the image in which the network is shown an observation, for
            the sampler `Conditional`; zeros say that there is none. 0 for a network of images alone.

    References:
        | Progressive Distillation for Fast Sampling of Diffusion Models (Salimans and Ho, 2022), arXiv 2202.00512
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), arXiv 2206.00364
        | Flow Matching for Generative Modeling (Lipman et al., 2023), arXiv 2210.02747
    """

    labels: Tensor | None

    def __init__(
        self,
        network: Any,
        schedule: Any = None,
        prediction: Prediction | None = None,
        dtype: torch.dtype | None = None,
        *,
        sigma_data: float | None = None,
        labels: Any = None,
        time_table: int | None = None,
        multiple: int = 1,
        condition: int = 0,
    ) -> None:
        super().__init__()
        if is_pipeline(network):
            network, own = read_pipeline(network)
            schedule = own if schedule is None else schedule
        good = callable(network)
        check(good, "Denoiser", "network", "to be called as network(x_t, t)", type(network), error=TypeError)
        network = network if isinstance(network, nn.Module) else _Function(network)
        if not isinstance(schedule, Schedule):
            fix = "Give VPSchedule, EDMSchedule, FlowSchedule or a diffusers scheduler"
            check(schedule is not None, "Denoiser", "schedule", "to be given", None, fix, error=TypeError)
            reading = read_scheduler(schedule)
            schedule, prediction = reading.schedule, prediction or reading.prediction
            sigma_data = reading.sigma_data if sigma_data is None else sigma_data
        prediction = prediction or ("x0" if _is_preconditioned(network) else schedule.prediction)
        _check_prediction(prediction, schedule, network)
        sigma_data = 0.5 if sigma_data is None else sigma_data
        check(sigma_data > 0, "Denoiser", "sigma_data", "to be positive", sigma_data)
        self.network, self.schedule, self.prediction, self.dtype = network, schedule, prediction, dtype
        self.sigma_data, self.multiple, self.condition = sigma_data, multiple, condition
        self.register_buffer("labels", check_labels(network, labels), persistent=False)
        self.asked = asks_for_labels(network)
        self.time_table = _time_table(network) if time_table is None else time_table

    @classmethod
    def from_pretrained(cls, source: Any, schedule: Any = None, **options: Any) -> Denoiser:
        """Returns the denoiser of a diffusers pipeline or of its folder, in evaluation mode.

        Arguments:
            source: The folder of a pipeline, of a UNet2DModel, or of a run; or a pipeline.
            schedule: That of a folder without a scheduler.
            options: Further arguments of `Denoiser`.
        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If it holds no model, a damaged one, or one that is not understood.
        """
        if isinstance(source, str | os.PathLike):
            folder = read_folder(source, scheduled=schedule is None)
            options.setdefault("condition", folder.condition)
            return cls(folder.network, folder.scheduler if schedule is None else schedule, **options).eval()
        return cls(source, schedule, **options).eval()

    def labelled(self, labels: Any) -> Denoiser:
        """Returns a denoiser of the same network with other class labels, such as those of another batch."""
        other, found = copy.copy(self), check_labels(self.network, labels)
        other._buffers, other._modules = dict(self._buffers), dict(self._modules)  # a copy would write into ours
        other.labels = found if self.labels is None or found is None else found.to(self.labels.device)
        return other

    def levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Returns alpha_t and sigma_t, (B or 1, 1, 1, 1), in the dtype of `like`.

        Arguments:
            t: (B,) or 0-dimensional times.
            like: A tensor of the dtype.
        """
        t = t.reshape(-1, 1, 1, 1)
        return self.schedule.alpha(t).to(like.dtype), self.schedule.sigma(t).to(like.dtype)

    def raw(self, x: Tensor, time: Tensor, condition: Tensor | None = None, *, tiles: int = 1) -> Tensor:
        """Returns the bare output of the network, (B, C, H, W), in the dtype of x.

        Arguments:
            x: (B, C, H, W) noisy images, as the network takes them.
            time: (B,) times, as the network takes them.
            condition: (B, K, H, W) what the network is shown of observations; None: nothing.
            tiles: How many tiles of each image x holds: first one of every image, then the next.
        """
        dtype = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), x.dtype)
        half = self.dtype is not None and self.dtype != torch.float32
        labels = label_arguments(self.network, self.labels, self.asked, len(x), x.device, tiles)
        rows = self.time_table
        time = time.to(torch.float32) if rows is None else time.round().clamp(0, rows - 1).long()
        given = self._bordered(self._with(condition, x).to(dtype))
        with torch.autocast(x.device.type, self.dtype if half else torch.bfloat16, enabled=half):
            output = self.network(given, time.expand(len(x)), *labels)
        output = getattr(output, "sample", output)
        output = output[0] if isinstance(output, tuple) else output
        name, channels = "the network's output", x.shape[1]
        what = "to be a tensor, a tuple or a diffusers output"
        check(isinstance(output, Tensor), "Denoiser", name, what, type(output), error=TypeError)
        sizes = [(len(x), count, *given.shape[2:]) for count in (channels, 2 * channels)]
        what = f"to have {channels} channels (or {2 * channels} with a learned variance) and the size of its input"
        check(output.shape in sizes, "Denoiser", name, what, output)
        return output[:, :channels, : x.shape[2], : x.shape[3]].to(x.dtype)

    def _with(self, condition: Tensor | None, x: Tensor) -> Tensor:
        """Returns the input of the network: images and, if it is one that is shown observations, these."""
        if condition is not None:
            what, fix = f"to be shown {condition.shape[1]} channels", "Train it with the sampler Conditional"
            check(condition.shape[1] == self.condition, "Denoiser", "the network", what, self.condition, fix)
            return torch.cat((x, condition.to(x.dtype)), 1)
        return torch.cat((x, x.new_zeros(len(x), self.condition, *x.shape[2:])), 1) if self.condition else x

    def _bordered(self, x: Tensor) -> Tensor:
        """Returns images with a border of zeros below and at the right, where their sides need one."""
        below, right = (-side % self.multiple for side in x.shape[-2:])
        return nn.functional.pad(x, (0, right, 0, below)) if below or right else x

    def forward(
        self,
        x_t: Tensor,
        t: Tensor | float,
        *,
        levels: tuple[Tensor, Tensor] | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Returns x0-hat, (B, C, H, W), in the dtype of x_t.

        Arguments:
            x_t: (B, C, H, W) noisy images.
            t: The time, a number, a 0-dimensional or a (B,) tensor, in the units of the schedule.
            levels: alpha_t and sigma_t in the dtype of x_t, where they are known already.
            condition: (B, K, H, W) what the network is shown of observations, `operator.condition(y, parameters)`:
                the mean is then that given y too. None: the prior's.
        """
        t = torch.as_tensor(t, device=x_t.device).reshape(-1)
        alpha, sigma = self.levels(t, x_t) if levels is None else levels
        if self.prediction == "edm":
            norm = (sigma**2 + self.sigma_data**2).sqrt()
            output = self.raw(x_t / norm, sigma.flatten().log() / 4, condition)
            return (self.sigma_data / norm) ** 2 * x_t + sigma * self.sigma_data / norm * output
        output = self.raw(x_t, t, condition)
        if self.prediction == "eps":
            return (x_t - sigma * output) / alpha.clamp_min(LEAST**0.5)  # flow matching begins without any signal
        if self.prediction == "v":
            return (alpha * x_t - sigma * output) / (alpha**2 + sigma**2)
        if self.prediction == "flow":
            return (x_t - sigma * output) / (alpha + sigma)
        return output

    def loss(self, x_0: Tensor, t: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """Returns the training loss of each image, (B,): the mean squared error of what the network predicts.

        Arguments:
            x_0: (B, C, H, W) clean images.
            t: (B,) times.
            noise: (B, C, H, W) standard normal noise.
            condition: (B, K, H, W) what the network is shown of observations.
        """
        alpha, sigma = self.levels(t, x_0)
        x_t = alpha * x_0 + sigma * noise
        if self.prediction == "eps":
            error = self.raw(x_t, t, condition) - noise
        elif self.prediction == "v":
            error = self.raw(x_t, t, condition) - (alpha * noise - sigma * x_0)
        elif self.prediction == "flow":
            error = self.raw(x_t, t, condition) - (noise - x_0)
        else:
            error = self(x_t, t, condition=condition) - x_0
            if self.prediction == "edm":
                error = error * (sigma**2 + self.sigma_data**2).sqrt() / (sigma * self.sigma_data)
        return error.square().flatten(1).mean(1)


def halvings(network: nn.Module) -> int:
    """Returns the number that the sides of images are to be multiples of: 2^(resolutions - 1) for diffusers' U-Nets."""
    blocks = getattr(getattr(network, "config", None), "down_block_types", None)
    return 2 ** (len(blocks) - 1) if isinstance(blocks, list | tuple) and blocks else 1


class _Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, time: Tensor, *labels: Any) -> Any:
        return self.function(x, time, *labels)


def _is_preconditioned(network: nn.Module) -> bool:
    """Returns whether a network of EDM applies the preconditioning itself."""
    return hasattr(network, "round_sigma")


def _check_prediction(prediction: str | None, schedule: Schedule, network: nn.Module) -> None:
    """Raises the sentence of `check` unless prediction, schedule and network go together."""
    listed = f"to be {', '.join(KINDS[:-1])} or {KINDS[-1]}"
    fix = None if prediction else 'Name it: "edm" for a raw network, "x0" for one that is preconditioned itself'
    check(prediction in KINDS, "Denoiser", "prediction", listed, prediction, fix)
    if prediction == "edm":
        good = isinstance(schedule, EDMSchedule)
        check(good, "Denoiser", "schedule", 'to be an EDMSchedule with prediction "edm"', type(schedule))
        fix = 'Take prediction "x0", or its `model`'
        good = not _is_preconditioned(network)
        check(good, "Denoiser", "network", 'to be raw with prediction "edm"', "preconditioning of its own", fix)


def _time_table(network: nn.Module) -> int | None:
    """Returns the rows of the table in which a network looks times up; None if it has no such table."""
    for name, module in network.named_modules():
        name = name.lower()
        times = ("time" in name or "step" in name) and not ("class" in name or "label" in name)
        if times and isinstance(module, nn.Embedding):
            return module.num_embeddings
    return None
