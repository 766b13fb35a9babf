"""Sizes of network and training to begin with, from the shape of the images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from emfast._check import check
from emfast._yaml import NotYaml, load_yaml

Settings = dict[str, Any]
NAMES = ("tiny", "small", "paper")
WIDTHS = {
    "tiny": [32, 64, 64, 64],
    "small": [64, 128, 128, 128, 256],
    "paper": [128, 256, 256, 256],
    "paper, larger": [128, 128, 256, 256, 512, 512],  # from 48 pixels a side on
}


def preset(name: str, shape: tuple[int, int, int]) -> dict[str, Settings]:
    """Returns the settings of a preset, by the groups of the config.

    `tiny` takes minutes on a CPU for hundreds of small images, and is EM without rounds as in examples/demo.yaml;
    `small` is that with a larger network and a longer training, hours on a CPU, for thousands of images on a GPU;
    `paper` is the network and the training of the paper, for a big one.

    Arguments:
        name: tiny, small or paper.
        shape: (C, H, W) of the images.
    Returns:
        The settings; `Config.with_preset` makes a config of them.
    Raises:
        ValueError: If there is no such preset.
    """
    check(name in NAMES, "preset", "name", f"to be one of {', '.join(NAMES)}", repr(name))
    side = min(shape[1:])
    widths = WIDTHS["paper, larger" if name == "paper" and side >= 48 else name]
    levels = 1
    while levels < len(widths) and -(-side // 2**levels) >= 4:
        levels += 1
    sides = [-(-side // 2**level) for level in range(levels)]
    last = {"tiny": 8, "small": 16, "paper": 16 if side < 48 else 4}[name]
    attention = [level for level, size in enumerate(sides) if size <= last][:1]
    network: Settings = {"channels": widths[:levels], "attention": attention, "head_dim": 32 if name == "tiny" else 64}
    network |= {"layers": 1, "groups": 8} if name == "tiny" else {"layers": 2}
    network |= {} if name == "paper" else {"prediction": "v"}
    return {"network": network, **_TRAINING[name]}


# EM without rounds, as benchmarks/em.py has shown it to be the best.
_CONTINUOUS: Settings = {
    "optimizer": "muon",
    "decay": 0.8,
    "noise_levels": "log-normal",
    "noise_mean": -0.8,
    "noise_std": 1.3,
    "schedule_share": 0.25,
    "target_images": 1000,
}
_TRAINING: dict[str, dict[str, Any]] = {
    "tiny": {
        "schedule": "continuous",
        "gaussian": {"always": "auto"},
        "e_step": {"batch_size": 64, "shard_size": 64, "warm_start": 1.5},
        "m_step": {
            "initial_steps": 150,
            "steps": 200,
            "batch_size": 32,
            "learning_rate": 5.0e-3,
            "warmup": 50,
            "ema": 0.99,
            "checkpoint": 100,
            **_CONTINUOUS,
        },
        "evaluation": {"samples": 256, "steps": 25, "order": 2},
        "rounds": 6,
        "final_rounds": 0,
    },
    "small": {
        "schedule": "continuous",
        "gaussian": {"always": "auto"},
        "e_step": {"warm_start": 1.5},
        "m_step": {
            "initial_steps": 500,
            "steps": 1000,
            "batch_size": 64,
            "learning_rate": 2.0e-3,
            "warmup": 100,
            "ema": 0.997,
            "checkpoint": 250,
            **_CONTINUOUS,
        },
        "evaluation": {"samples": 1024, "steps": 25, "order": 2},
        "rounds": 6,
        "final_rounds": 0,
    },
    "paper": {
        "m_step": {"batch_size": 512, "initial_steps": 10000, "steps": 9766, "final_steps": 97559},
        "evaluation": {"samples": 5000, "steps": 100},
        "e_step": {"subset": 5000},
        "rounds": 8,
        "final_rounds": 3,
    },
}


def shape_of(data: Mapping[str, Any]) -> tuple[int, int, int]:
    """Returns the shape (C, H, W) of the images that a run is to learn.

    Arguments:
        data: The group `data` of a config.
    Raises:
        ValueError: If there are no data, or damaged ones.
    """
    from emfast.data import load, load_observations

    patch, size, crop = (_number(data.get(key)) for key in ("patch", "size", "crop"))
    side, observed = patch or size, data.get("observations")
    if observed not in (None, "null"):
        y, _ = load_observations(str(observed))
        good = y.ndim == 4
        fix = "Name data.size, or set network and m_step without a preset"
        check(good or side is not None, "config", "preset", "to know the size of the images", tuple(y.shape), fix)
        shape = tuple(y.shape[1:]) if good else (1, 0, 0)
    else:
        shape = load(str(data.get("images", "sample:train")), crop=crop, limit=1).shape if side is None else (1, 0, 0)
    return (shape[0], side, side) if side is not None else (shape[0], shape[1], shape[2])


def _number(value: Any) -> int | None:
    """Returns a setting that is a whole number, perhaps as text; None for others, which are judged with the rest."""
    return int(str(value)) if str(value).isdecimal() else None


def expanded(tree: Settings) -> dict[str, Any]:
    """Returns the settings of the preset that a config names, and takes its name out; nothing where none is named.

    Arguments:
        tree: What a config gives. What the preset means is written to config.yaml, not its name.
    """
    name = tree.pop("preset", None)
    if name in (None, "null"):
        return {}
    check(name in NAMES, "config", "preset", f"to be one of {', '.join(NAMES)}", repr(str(name)))
    found = preset(str(name), shape_of(tree.get("data") or {}))
    given = tree.get("network")
    return {**found, "network": _following(found["network"], given if isinstance(given, Mapping) else {})}


def _following(network: Settings, given: Mapping[str, Any]) -> Settings:
    """Returns the network of a preset, with groups, attention and heads that fit other widths, if such are given.

    Arguments:
        network: That of the preset; what fits the widths stays as it is.
        given: What a config gives of it, which goes before all of this.
    """
    widths = _numbers(given.get("channels"))
    if not widths or min(widths) < 1:
        return network
    last, groups = len(widths) - 1, network.get("groups", 32)
    if any(width % groups for width in widths):
        most = max(1, min(widths) // 4)  # a group of fewer channels has hardly a mean to normalise by
        common = math.gcd(*widths)
        groups = max(divisor for divisor in range(1, min(groups, most) + 1) if common % divisor == 0)
    attention = [min(level, last) for level in network["attention"]]
    levels = {last, *(_numbers(given.get("attention")) or attention)}  # the middle has attention, too
    head = math.gcd(network["head_dim"], *(widths[level] for level in levels if -last <= level <= last))
    return {**network, "groups": groups, "attention": attention, "head_dim": head}


def _numbers(value: Any) -> list[int] | None:
    """Returns a setting that is a list of whole numbers, perhaps as text; None for others."""
    with suppress(NotYaml):
        value = load_yaml(str(value)) if isinstance(value, str) else value
    good = isinstance(value, list) and all(isinstance(each, int) and not isinstance(each, bool) for each in value)
    return value if good else None
