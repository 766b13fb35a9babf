"""Networks of a user's own, which only their code can build: their weights on disk, put into a copy of the network."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from emfast._check import check, message
from emfast._files import read_tensors, write_tensors
from emfast.diffusion import Denoiser

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
        folder: The model of the run: what `emfast.train` returns.
        network: The module as it was given to `emfast.train`; it stays as it is. Or a `Denoiser`.
        schedule: Its schedule; that of the folder by default.
    Returns:
        The denoiser, with a copy of the network.
    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If it is damaged, or of another network.
    """
    from emfast.diffusion.loading import read_scheduler_of

    path = Path(folder)
    if isinstance(network, Denoiser):
        return read_own(path, network)
    check((path / WEIGHTS).is_file(), "load_network", str(path), "to hold a network of one's own", "none")
    with torch.random.fork_rng(devices=[]):
        return read_own(path, Denoiser(network, read_scheduler_of(path) if schedule is None else schedule))


def reset(denoiser: Denoiser) -> Denoiser:
    """Returns a copy whose layers have new random weights, from the global generator; others keep what they have."""
    denoiser = copy.deepcopy(denoiser)
    for module in denoiser.network.modules():
        if callable(renew := getattr(module, "reset_parameters", None)):
            renew()
    return denoiser
