"""The model of a run: a U-Net and its schedule, kept as a diffusers pipeline folder."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from emfast import random
from emfast._check import check, check_finite
from emfast._files import read_json, settle_folder, write_folder, write_json
from emfast.diffusion import Denoiser
from emfast.diffusion.condition import conditioned, prior_config, prior_of
from emfast.diffusion.denoiser import halvings
from emfast.diffusion.labels import classes
from emfast.diffusion.loading import read_folder, read_scheduler_of
from emfast.diffusion.schedulers import PREDICTIONS
from emfast.em.own_network import is_own, read_own, reset, write_own

if TYPE_CHECKING:
    from emfast.config import NetworkConfig

NOTE = "emfast.json"  # beside a model
DIFFUSERS_PREDICTIONS = {ours: theirs for theirs, ours in PREDICTIONS.items()}


def build_model(config: NetworkConfig, shape: tuple[int, int, int], seed: int) -> tuple[Denoiser, Any]:
    """Returns a new, randomly initialised diffusers UNet2DModel as denoiser, and its diffusers scheduler.

    Arguments:
        config: The network and schedule.
        shape: (C, H, W) of the images.
        seed: The key of the initial weights.
    Images of other sides than its resolutions can halve get a border inside: see `Denoiser`.

    Raises:
        ValueError: If the widths of the network do not fit.
    """
    from diffusers import UNet2DModel

    channels, height, width = shape
    levels = len(config.channels)
    factor = 2 ** (levels - 1)
    fix = "Give the network fewer resolutions"
    check(
        min(height, width) >= factor, "network", "the images", f"to have sides >= {factor}", f"{height} x {width}", fix
    )
    height, width = (-(-side // factor) * factor for side in (height, width))  # with the border, which is cut off
    attention = {level % levels if -levels <= level < levels else levels for level in config.attention}
    check(levels not in attention, "network", "attention", f"to list resolutions 0 ... {levels - 1}", config.attention)
    groups, head = config.groups, config.head_dim or 1
    for level, wide in enumerate(config.channels):
        check(wide % groups == 0, "network", "channels", f"to be multiples of groups = {groups}", config.channels)
        attends = level in attention or level == levels - 1  # the middle block always has attention
        fits = not attends or wide % head == 0
        check(fits, "network", "channels with attention", f"to be multiples of head_dim = {head}", config.channels)
    arguments = {
        "sample_size": height if height == width else (height, width),
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": tuple(config.channels),
        "layers_per_block": config.layers,
        "norm_num_groups": config.groups,
        "dropout": config.dropout,
        "attention_head_dim": config.head_dim,
        "down_block_types": tuple("AttnDownBlock2D" if i in attention else "DownBlock2D" for i in range(levels)),
        "up_block_types": tuple("AttnUpBlock2D" if i in attention else "UpBlock2D" for i in reversed(range(levels))),
    }
    with seeded(random.derive(seed, "weights")):
        network: Any = UNet2DModel(**arguments)
    scheduler = make_scheduler(config)
    return Denoiser(network, scheduler, multiple=factor), scheduler


def reinitialise(denoiser: Denoiser, scheduler: Any, seed: int) -> Denoiser:
    """Returns a denoiser with a network of the same architecture and new random weights.

    Arguments:
        denoiser: The denoiser.
        scheduler: Its scheduler of diffusers, from which it was made.
        seed: The seed of the weights.
    """
    network: Any = denoiser.network
    with seeded(seed):
        if is_own(denoiser, scheduler):
            return reset(denoiser)
        network = type(network).from_config(prior_config(network, denoiser.condition))
    return conditioned(Denoiser(network, scheduler, multiple=denoiser.multiple), denoiser.condition)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A block before which the global generator, that of new weights, is seeded; behind it it is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        yield


def make_scheduler(config: NetworkConfig) -> Any:
    """Returns the diffusers scheduler of a config."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=config.schedule_steps,
        beta_schedule="linear" if config.schedule == "linear" else "squaredcos_cap_v2",
        prediction_type=DIFFUSERS_PREDICTIONS[config.prediction],
    )


def save_model(
    denoiser: Denoiser, scheduler: Any, folder: str | os.PathLike[str], note: dict[str, Any] | None = None
) -> None:
    """Writes a pipeline folder that `DDPMPipeline.from_pretrained` opens; whole or not at all.

    Arguments:
        denoiser: The model, its network a diffusers module.
        scheduler: The diffusers scheduler it was trained with.
        folder: The folder, replaced if it exists.
        note: Written beside it as `emfast.json`, with a checksum of each file: where the model comes from.
    Raises:
        ValueError: If a weight is NaN or infinite.
    """
    from diffusers import DDPMPipeline

    check_finite(denoiser.network.state_dict(), "save_model", "the model")

    def fill(path: Path) -> None:
        if is_own(denoiser, scheduler):
            write_own(denoiser, scheduler, path)
        else:
            pipeline: Any = DDPMPipeline(prior_of(denoiser, path), scheduler)
            pipeline.save_pretrained(path)
        write_json(path / NOTE, {**(note or {}), "files": _checksums(path)})

    write_folder(folder, fill)


def damaged_file(folder: str | os.PathLike[str]) -> str | None:
    """Returns the name of a file that is not as `save_model` wrote it, or not there; None if all are.

    Arguments:
        folder: What `save_model` wrote, by this version: an older one noted no checksums.
    """
    path = Path(folder)
    try:
        expected = read_json(path / NOTE)["files"]
    except KeyError:
        return None
    except (OSError, ValueError, TypeError):
        return NOTE
    return next((name for name in sorted(expected) if not _has(path / name, expected[name])), None)


def _has(path: Path, expected: str) -> bool:
    """Returns whether there is a file with a checksum that may be read."""
    try:
        return _checksum(path) == expected
    except OSError:
        return False


def read_note(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns what the note beside a model says: its round, and the range and shape of its images; {} without one."""
    path = Path(folder) / NOTE
    note = read_json(path) if path.is_file() else {}
    return dict(note) if isinstance(note, dict) else {}


def _checksums(path: Path) -> dict[str, str]:
    """Returns the CRC-32 of every file below a folder but the note, by its name there."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != NOTE)
    return {file.relative_to(path).as_posix(): _checksum(file) for file in files}


def _checksum(path: Path) -> str:
    return f"{zlib.crc32(path.read_bytes()):08x}"


def load_model(
    folder: str | os.PathLike[str], device: torch.device | str = "cpu"
) -> tuple[Denoiser, tuple[int, int, int]]:
    """Returns the denoiser of a diffusers folder, in evaluation mode, and the shape (C, H, W) of its images.

    Arguments:
        folder: A pipeline folder (with `unet/` and `scheduler/`), or that of a UNet2DModel with `scheduler/` in it.
            The sides of the images are 0 where it does not say them (`sample_size` null).
        device: Where to put it.
    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no model, a damaged one, one that is not understood, or one whose weights are not
            finite.
    """
    denoiser, _, shape = load_pipeline(folder)
    return denoiser.to(device), shape


def load_pipeline(folder: str | os.PathLike[str]) -> tuple[Denoiser, Any, tuple[int, int, int]]:
    """Returns the denoiser of a diffusers folder, its diffusers scheduler, and the shape (C, H, W) of its images."""
    network, scheduler, shape, condition = read_folder(folder)
    conditional = classes(network)[1]
    fix = "Its labels are known in Python only: Denoiser.from_pretrained(folder, labels=...)"
    check(not conditional, "load_model", str(folder), "to be a model without class labels", "one with them", fix)
    noted = read_note(folder).get("shape")
    if isinstance(noted, list) and len(noted) == 3 and all(isinstance(side, int) for side in noted):
        shape = (shape[0], noted[1], noted[2])  # without the border
    return Denoiser(network, scheduler, multiple=halvings(network), condition=condition).eval(), scheduler, shape


def load_whole(folder: str | os.PathLike[str], fix: str, like: Denoiser | None = None) -> tuple[Denoiser, Any]:
    """Returns the denoiser that `save_model` wrote, and its scheduler, if every file is as it was written.

    Arguments:
        folder: The folder.
        fix: What to do if one is not.
        like: A denoiser of the network, if that is a user's own.
    Raises:
        ValueError: If one is not; it is named.
    """
    settle_folder(folder)
    bad = damaged_file(folder)
    check(bad is None, "train", f"{folder}/{bad}", "to be as it was written", "another content, or none to read", fix)
    if like is not None:
        scheduled = (Path(folder) / "scheduler").is_dir()
        return read_own(Path(folder), like), read_scheduler_of(Path(folder)) if scheduled else None
    return load_pipeline(folder)[:2]


def publish_model(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    number: int,
    fix: str,
    like: Denoiser | None = None,
) -> None:
    """Writes the model of a round to another folder, unless that holds it, whole.

    Arguments:
        source: The model of the round.
        folder: Where to.
        number: The round, noted there.
        fix: What to do if the source is damaged.
        like: A denoiser of the network, if that is a user's own.
    """
    settle_folder(folder)
    if damaged_file(folder) or read_json(Path(folder) / NOTE).get("round") != number:
        model = load_whole(source, fix, like)
        note = {key: value for key, value in read_note(source).items() if key != "files"}
        save_model(*model, folder, {**note, "round": number})
