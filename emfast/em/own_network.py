"""Networks of a user's own, which only their code can build: their weights on disk, put into a copy of the network."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emfast._check import check, message
from emfast._files import read_tensors, write_tensors
from emfast.diffusion import Denoiser
from emfast.diffusion.condition import NAME as FIRST
from emfast.diffusion.condition import conditioned

WEIGHTS = "network.safetensors"


def is_own(denoiser: Denoiser, scheduler: Any) -> bool:
    """Returns whether diffusers cannot write a model.

    Arguments:
        denoiser: The model.
        scheduler: Its diffusers scheduler; None: it has none.
    """
    return scheduler is None or type(denoiser.network).__name__ != "UNet2DModel"


def write_own(denoiser: Denoiser, scheduler: Any, folder: Path) -> None:
    """Writes the weights of a network and, if it has one, its scheduler.

    Arguments:
        denoiser: The model.
        scheduler: Its diffusers scheduler, or None.
        folder: The folder, which exists.
    """
    write_tensors(folder / WEIGHTS, denoiser.network.state_dict())
    if scheduler is not None:
        scheduler.save_pretrained(folder / "scheduler")


def read_own(folder: Path, like: Denoiser) -> Denoiser:
    """Returns a denoiser like another one with the weights of a folder, in evaluation mode.

    Arguments:
        folder: What `write_own` has written.
        like: The denoiser, not accelerated.
    Raises:
        ValueError: If the weights are damaged, or of another network.
    """
    denoiser, path = copy.deepcopy(like), folder / WEIGHTS
    weights = read_tensors(path)
    if type(denoiser.network).__name__ == "UNet2DModel" and not denoiser.condition and FIRST in weights:
        network: Any = denoiser.network
        if (shown := weights[FIRST].shape[1] - network.conv_in.in_channels) > 0:  # for the sampler Conditional
            conditioned(denoiser, shown)
    own = {name: tuple(value.shape) for name, value in denoiser.network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    bad = next((name for name in sorted(own.keys() | found.keys()) if own.get(name) != found.get(name)), None)
    fix = "Give the network as it was trained"
    if bad is not None:
        what = f"{found.get(bad, 'nothing')} for {own.get(bad, 'nothing')}"
        raise ValueError(message("load_model", f"{bad} of {path}", "to fit the network", what, fix))
    denoiser.network.load_state_dict(weights)
    return denoiser.eval()


def load_network(folder: str | Path, network: Any, schedule: Any = None) -> Denoiser:
    """Returns a network of one's own with the weights of a run, as a denoiser in evaluation mode.

    Arguments:
        folder: The run, or one of its models, such as `emfast.train` returns.
        network: The module as it was given to `emfast.train`; it stays as it is. Or a `Denoiser`.
        schedule: Its schedule; that of the folder by default.
    Returns:
        The denoiser, with a copy of the network.
    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If it is damaged, or of another network.
    """
    from emfast.diffusion.loading import model_folder, read_scheduler_of

    path = model_folder(folder)
    if not path.is_dir():
        raise FileNotFoundError(message("load_network", str(path), "to be a model folder", "nothing there"))
    fix = "Denoiser.from_pretrained loads one of diffusers" if (path / "unet").is_dir() else None
    check((path / WEIGHTS).is_file(), "load_network", str(path), "to hold a network of one's own", "none", fix)
    if isinstance(network, Denoiser):
        return read_own(path, network)
    known = schedule is not None or (path / "scheduler").is_dir()
    fix = "Give the Denoiser that was given to emfast.train"
    check(known, "load_network", "network", "to be a Denoiser, for the folder has no scheduler", type(network), fix)
    with torch.random.fork_rng(devices=[]):
        return read_own(path, Denoiser(network, read_scheduler_of(path) if schedule is None else schedule))


def check_network(denoiser: Denoiser, shape: tuple[int, int, int]) -> None:
    """Tries a network of a user's own at the first and the last noise level, before anything long begins.

    Arguments:
        denoiser: The network, in training mode or not, which it stays in.
        shape: (C, H, W) of the images.
    Raises:
        ValueError: If it does not take such images, or gives numbers that are not finite.
    """
    frozen = [name for name, p in denoiser.network.named_parameters() if not p.requires_grad]
    found = f"{frozen[0]} frozen" if frozen else ""
    fix = "Call requires_grad_(True) on it: a copy is trained, and yours stays as it is"
    check(not frozen, "train", "network", "to have all its parameters trained", found, fix)
    device = next((p.device for p in denoiser.parameters()), torch.device("cpu"))
    modes = {module: module.training for module in denoiser.modules()}
    fix = 'Is it told sigma rather than t? Give Denoiser(network, EDMSchedule(), "x0"), or "edm" for a raw network'
    ends = (denoiser.schedule.times(1), denoiser.schedule.training_times(torch.zeros(1)))
    try:
        for t in torch.cat(ends).to(device):
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                output = _tried(denoiser.eval(), torch.zeros(2, *shape, device=device), t.reshape(1))
            good = bool(output.isfinite().all())
            check(good, "train", f"network(x_t, t) at t = {t:g}", "to be finite", "NaN or infinity", fix)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _tried(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    """Returns the output of the network; whatever it raises becomes a sentence."""
    try:
        return denoiser.raw(x, t)
    except Exception as error:
        if str(error).startswith("Denoiser:"):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}"
        what = f"to take x_t of shape {tuple(x.shape)} and t of shape ({len(x)},)"
        raise ValueError(message("train", "network(x_t, t)", what, reason)) from error


def reset(denoiser: Denoiser) -> Denoiser:
    """Returns a copy whose layers have new random weights, from the global generator; others keep what they have."""
    denoiser = copy.deepcopy(denoiser)
    for module in denoiser.network.modules():
        if callable(renew := getattr(module, "reset_parameters", None)):
            renew()
    return denoiser
