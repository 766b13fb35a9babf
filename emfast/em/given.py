"""What a run is given in Python: tensors and datasets instead of files, a module or a pipeline instead of a folder."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from emfast._check import check
from emfast.data import Images
from emfast.diffusion import Denoiser
from emfast.diffusion.denoiser import halvings
from emfast.diffusion.loading import is_pipeline, read_pipeline
from emfast.em.model import make_scheduler

if TYPE_CHECKING:
    from emfast.config import Config

GIVEN = "(given in Python)"  # stands in config.yaml for what has no path


class Given(NamedTuple):
    """What was given in Python; None for what the config names."""

    images: Images | None = None
    clean: Images | None = None
    observations: dict[str, Tensor] | None = None  # y and parameters of the operator
    model: tuple[Denoiser, Any] | None = None  # and its diffusers scheduler, None if it has none


def take(
    config: Config, *, images: Any = None, observations: Any = None, clean: Any = None, model: Any = None,
    network: Any = None
) -> tuple[Config, Given]:  # fmt: skip
    """Returns a config that says what is given in Python, and that; see `emfast.train`.

    Arguments:
        config: The config.
        images, observations, clean, model, network: What `emfast.train` was given, or None.
    """
    for name, pair in {"images or observations": (images, observations), "model or network": (model, network)}.items():
        both = all(part is not None for part in pair)
        check(not both, "train", name, "to be given", "both", "Leave one of them out")
    data = config.data
    if images is not None:
        clean_source = None if data.clean == "auto" else data.clean
        reference = None if data.reference == "auto" else data.reference
        data = dataclasses.replace(data, images=GIVEN, observations=None, clean=clean_source, reference=reference)
    if observations is not None:
        data = dataclasses.replace(data, images=None, observations=GIVEN)
    clean = None if clean is None else as_images(clean, "clean")
    if clean is not None:
        data = dataclasses.replace(data, clean=GIVEN, clean_count=len(clean))
    config = dataclasses.replace(config, data=data, model=GIVEN if model is not None else config.model)
    given = Given(
        images=None if images is None else as_images(images, "images"),
        clean=clean,
        observations=None if observations is None else _observations(observations),
        model=_model(network, config, "network") if model is None else _model(model, config, "model"),
    )
    return config, given


def as_images(source: Any, name: str) -> Images:
    """Returns images of a tensor or of a dataset, whose items are images, or tuples that begin with one.

    Arguments:
        source: (N, C, H, W) of float in [-1, 1] or of uint8; or anything with a length and items (C, H, W).
        name: What it is, for errors.
    Raises:
        TypeError: If it is none of these.
        ValueError: If its images are not finite, or of several shapes.
    """
    if isinstance(source, Images):
        return source
    if not isinstance(source, Tensor):
        good = hasattr(source, "__len__") and hasattr(source, "__getitem__") and len(source) > 0
        fix = "Give a tensor (N, C, H, W) in [-1, 1]"
        check(good, "train", name, "to be a tensor or a dataset of images", type(source), fix, TypeError)
        items = [source[index] for index in range(len(source))]
        items = [item[0] if isinstance(item, tuple | list) else item for item in items]
        tensors = [item for item in items if isinstance(item, Tensor)]
        kind = next((type(item) for item in items if not isinstance(item, Tensor)), Tensor)
        fix = "Let it return tensors (C, H, W) in [-1, 1], as by torchvision's ToTensor and x * 2 - 1"
        check(len(tensors) == len(items), "train", name, "to have tensors as items", kind, fix, TypeError)
        shapes = {tuple(item.shape) for item in tensors}
        check(len(shapes) == 1, "train", name, "to have images of one shape", sorted(shapes)[:3])
        source = torch.stack(tensors)
    tensor = source.detach().cpu()
    tensor = tensor if tensor.dtype == torch.uint8 else tensor.float()
    if tensor.dtype != torch.uint8 and tensor.numel():
        low, high = (float(end) for end in tensor.aminmax())
        fix = "Scale them: x * 2 - 1 from [0, 1], x / 127.5 - 1 from 0 ... 255, or give uint8"
        wrong = low >= 0 or max(-low, high) > 1.5  # NaN, which compares false with everything, is told later
        check(not wrong, "train", name, "to be in [-1, 1]", f"values from {low:.4g} to {high:.4g}", fix)
    return Images(tensor)


def _observations(source: Any) -> dict[str, Tensor]:
    """Returns observations as a file of them has them: y and parameters by name."""
    named = {"y": source} if isinstance(source, Tensor) else source
    good = isinstance(named, Mapping) and all(isinstance(value, Tensor) for value in named.values()) and "y" in named
    fix = 'Give a tensor, or {"y": y, "mask": mask}'
    check(good, "train", "observations", "to be a tensor, or tensors by name", type(source), fix, TypeError)
    kinds = {name: torch.complex64 if value.is_complex() else torch.float32 for name, value in named.items()}
    return {name: value.detach().cpu().to(kinds[name]) for name, value in named.items()}


def _model(model: Any, config: Config, name: str) -> tuple[Denoiser, Any] | None:
    """Returns a copy of a model that is given, as denoiser with its diffusers scheduler, which may be None."""
    if model is None:
        return None
    if is_pipeline(model):
        network, scheduler = read_pipeline(model)
        return Denoiser(copy.deepcopy(network), scheduler, multiple=halvings(network)), scheduler
    if isinstance(model, Denoiser):
        return copy.deepcopy(model), None
    fix = "Give a pipeline, a Denoiser, or a module called as network(x_t, t)"
    kind = f"the class {model.__name__}" if isinstance(model, type) else type(model)
    check(isinstance(model, nn.Module), "train", name, f"to be a {name}", kind, fix, TypeError)
    scheduler = make_scheduler(config.network)
    return Denoiser(copy.deepcopy(model), scheduler, multiple=halvings(model)), scheduler
