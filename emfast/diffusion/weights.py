"""Files of weights: found in whatever form diffusers writes them, and fitted to the network by name and shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emfast._check import check, check_regular, message
from emfast._files import read_json, read_tensors

STEM = "diffusion_pytorch_model"
ONE = "to hold one file of weights"
SHARD = re.compile(r"-\d+-of-\d+\.")
# What other libraries put into the names of weights (DataParallel, torch.compile, PEFT), and diffusers' own old names.
RENAMED = (
    (re.compile(r"(^|\.)(module|_orig_mod|base_layer)\."), r"\1"),
    (re.compile(r"^base_model\.model\."), ""),
    (re.compile(r"\.query\.(?=\w+$)"), ".to_q."),
    (re.compile(r"\.key\.(?=\w+$)"), ".to_k."),
    (re.compile(r"\.value\.(?=\w+$)"), ".to_v."),
    (re.compile(r"\.proj_attn\.(?=\w+$)"), ".to_out.0."),
)


def read_weights(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """Returns the weights in a folder, by name, and the file that holds or lists them.

    That is `diffusion_pytorch_model.safetensors`, or else the only file of that kind: a variant (`.fp16.safetensors`),
    the index of shards (`.safetensors.index.json`), or the same of `.bin`.

    Raises:
        ValueError: If there is none, or one of many, or it is damaged; files are named.
    """
    path = _weights_file(folder)
    if path.suffix != ".json":
        return _read(path), path
    fix = "Copy all files of the model"
    index = read_json(path)
    names: Any = index.get("weight_map") if isinstance(index, dict) else None
    good = isinstance(names, dict) and all(isinstance(name, str) and Path(name).name == name for name in names.values())
    check(good, "load_model", str(path), "to list the shards of a model", "something else", fix)
    weights: dict[str, Tensor] = {}
    for name in sorted(set(names.values())):
        shard = folder / name
        check(shard.is_file(), "load_model", str(shard), "to be there", "no such file", fix)
        weights |= _read(shard)
    return weights, path


def _weights_file(folder: Path) -> Path:
    fix = "Give a folder written by diffusers or by emfast train"
    for kind in ("safetensors", "bin"):
        files = sorted(path for path in folder.glob(f"{STEM}*") if re.search(rf"\.{kind}(\.|$)", path.name))
        files = [path for path in files if path.name.endswith((f".{kind}", ".json")) and not SHARD.search(path.name)]
        plain = [path for path in files if path.name in (f"{STEM}.{kind}", f"{STEM}.{kind}.index.json")]
        found = plain[:1] or files
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ValueError(message("load_model", str(folder), ONE, names, "Leave one of them"))
        if found:
            return found[0]
    raise ValueError(message("load_model", f"{folder / STEM}.safetensors", "to hold the weights", "no such file", fix))


def _read(path: Path) -> dict[str, Tensor]:
    check_regular("load_model", path)
    if path.suffix != ".bin":
        return read_tensors(path)
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the pickle's reader does
        reason = str(error).strip().split("\n")[0]
        raise ValueError(message("load_model", str(path), "to hold weights only", reason)) from error
    good = isinstance(weights, dict) and all(isinstance(value, Tensor) for value in weights.values())
    check(good, "load_model", str(path), "to hold tensors by name", type(weights))
    result: dict[str, Tensor] = weights
    return result


def fit(weights: Mapping[str, Tensor], network: nn.Module, file: Path) -> dict[str, Tensor]:
    """Returns the weights under the names that the network has for them: all of them, and no others.

    Arguments:
        weights: The weights.
        network: The network.
        file: Where they are from, for sentences.
    Raises:
        ValueError: If a weight is missing, left over or of another shape; the first few are named.
    """
    expected = network.state_dict()
    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        name = key if key in expected else _renamed(key)
        check(name not in found, "load_model", str(file), f"to hold {name} once", f"{key} too")
        found[name] = value
    missing, others = _listed(expected, found), _listed(found, expected)
    requirement = f"to hold the {len(expected)} weights of its config's network"
    if missing or others:
        reasons = [f"{names} {what}" for names, what in ((missing, "missing"), (others, "left over")) if names]
        fix = "Save the model again without wrappers, adapters merged, beside its own config.json"
        raise ValueError(message("load_model", str(file), requirement, " and ".join(reasons), fix))
    for name, value in found.items():
        shape, given = tuple(expected[name].shape), tuple(value.shape)
        check(shape == given, "load_model", f"{name} of {file}", f"to have shape {shape}, that of its config", given)
    return found


def _renamed(key: str) -> str:
    """Returns a name without what libraries wrap around it."""
    before = ""
    while key != before:
        before = key
        for pattern, replacement in RENAMED:
            key = pattern.sub(replacement, key)
    return key


def _listed(names: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """Returns a few of the names that are not among others, and how many there are; "" for none."""
    left = sorted(name for name in names if name not in others)
    return f"{len(left)} ({', '.join(left[:3])}{', ...' if len(left) > 3 else ''})" if left else ""
