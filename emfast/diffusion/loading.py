"""Models of diffusers: a pipeline, its folder, or the folder of a U-Net."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from emfast._check import check, check_finite, check_regular, message
from emfast._files import read_json, settle_folder
from emfast.diffusion.condition import read_condition
from emfast.diffusion.schedulers import load_scheduler
from emfast.diffusion.weights import fit, read_weights

FIX = "Give a folder written by diffusers or by emfast train"
PARTS = {"unet", "scheduler"}


class Folder(NamedTuple):
    """What a model folder holds; the sides of its images are 0 where it does not say them."""

    network: Any
    scheduler: Any  # None if it was not asked for
    shape: tuple[int, int, int]
    condition: int  # channels in which the network is shown an observation


def is_pipeline(model: Any) -> bool:
    """Returns whether a model is a diffusers pipeline."""
    return any(kind.__name__ == "DiffusionPipeline" for kind in type(model).__mro__)


def read_pipeline(pipeline: Any) -> tuple[Any, Any]:
    """Returns the U-Net and the scheduler of a pipeline that denoises images themselves.

    Raises:
        TypeError: If it denoises something else, or not by a U-Net.
    """
    parts = {name for name, part in pipeline.components.items() if part is not None}
    fix = "Give the pipeline of a UNet2DModel, such as DDPMPipeline"
    kind, requirement = (
        f"{type(pipeline).__name__} of {', '.join(sorted(parts))}",
        "to have a unet and a scheduler only",
    )
    check(parts == PARTS, "Denoiser", "the pipeline", requirement, kind, fix, TypeError)
    return pipeline.unet, pipeline.scheduler


def read_folder(folder: str | os.PathLike[str], *, scheduled: bool = True) -> Folder:
    """Returns the network of a folder, its scheduler and the shape (C, H, W) of its images.

    Arguments:
        folder: That of a pipeline (with `unet/` and `scheduler/`), of a UNet2DModel with a folder `scheduler/` in it or
            beside it, or of a run, for its newest model.
        scheduled: Whether the scheduler is read.
    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no model, a damaged one, or one that is not understood; the file at fault is named.
    """
    path = model_folder(folder)
    settle_folder(path)
    if not path.is_dir():
        raise FileNotFoundError(message("load_model", str(folder), "to be a model folder", "nothing there"))
    _check_parts(path)
    unet = path / "unet" if (path / "unet").is_dir() else path
    own = (path / "network.safetensors").is_file()
    fix = "It is a network of your own: emfast.em.load_network(folder, network) loads it" if own else FIX
    check((unet / "config.json").is_file(), "load_model", str(folder), "to hold a UNet2DModel", "none", fix)
    network = _network(unet)
    scheduler = read_scheduler_of(path) if scheduled else None
    shape = (int(network.config.in_channels), *_sides(network, unet))
    network, condition = read_condition(path, network)
    return Folder(network, scheduler, shape, condition)


def model_folder(path: str | os.PathLike[str]) -> Path:
    """Returns the folder of a model: `model/` of a run, or the folder itself.

    Arguments:
        path: The folder of a run, or of a model.
    """
    path = Path(path)
    own = (path / "unet").is_dir() or (path / "config.json").is_file()
    return path / "model" if (path / "model").is_dir() and not own else path


def _check_parts(path: Path) -> None:
    """Refuses pipelines that do more than denoising images, such as latent ones."""
    index = path / "model_index.json"
    if not index.is_file():
        return
    values = _read_object(index)
    parts = {key for key, value in values.items() if isinstance(value, list) and any(value)}
    fix = "Give the pipeline of a UNet2DModel, such as DDPMPipeline"
    found = ", ".join(sorted(parts))
    check(parts <= PARTS, "load_model", str(index), "to name a unet and a scheduler only", found, fix)


def _read_object(path: Path) -> dict[str, Any]:
    check_regular("load_model", path)
    values = read_json(path)
    check(isinstance(values, dict), "load_model", str(path), "to hold an object", type(values), FIX)
    result: dict[str, Any] = values
    return result


def _network(folder: Path) -> Any:
    """Returns the U-Net of its folder, with its weights."""
    from diffusers import UNet2DModel

    path = folder / "config.json"
    config = _read_object(path)
    name = config.get("_class_name", "UNet2DModel")
    check(name == "UNet2DModel", "load_model", f"_class_name of {path}", "to be UNet2DModel", name, FIX)
    try:
        with torch.random.fork_rng(devices=[]):  # the weights that it begins with are random
            network: Any = UNet2DModel.from_config(config)
    except Exception as error:  # diffusers raises whatever its parts do
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ValueError(message("load_model", str(path), "to be the config of a UNet2DModel", reason, FIX)) from error
    weights, file = read_weights(folder)
    network.load_state_dict(fit(weights, network, file))
    check_finite(network.state_dict(), "load_model", str(file), "Its training diverged: give another model")
    return network.eval()


def read_scheduler_of(path: Path) -> Any:
    """Returns the scheduler of a folder, or, if that is a pipeline's unet/, beside it."""
    folders = [path / "scheduler"] + ([path.parent / "scheduler"] if path.name == "unet" else [])
    files = [folder / "scheduler_config.json" for folder in folders]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        fix = (
            "Add that of its training, such as DDPMScheduler(beta_schedule=..., prediction_type=...)"
            f".save_pretrained({str(folders[0])!r})"
        )
        raise ValueError(message("load_model", str(files[0]), "to name schedule and prediction", "no such file", fix))
    return load_scheduler(_read_object(found), str(found))


def _sides(network: Any, folder: Path) -> tuple[int, int]:
    """Returns height and width of the images; 0 for unknown ones."""
    size = network.config.sample_size or 0
    sides = (size, size) if isinstance(size, int) else size
    good = (
        isinstance(sides, list | tuple) and len(sides) == 2 and all(type(side) is int and side >= 0 for side in sides)
    )
    check(good, "load_model", f"sample_size of {folder}", "to be one or two whole numbers >= 0", size, FIX)
    height, width = sides
    return height, width
