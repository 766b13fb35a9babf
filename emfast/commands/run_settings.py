"""What a run knows of the observations that it was trained on, for those who restore others like them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from emfast._check import check, check_regular
from emfast._yaml import NotYaml, load_yaml
from emfast.diffusion.loading import model_folder
from emfast.em.model import read_note
from emfast.operators import Operator

TAKEN = ("operator", "sigma")  # the options that restoring takes from the run


def run_of(model: str | None) -> Path | None:
    """Returns the folder of the run that a model belongs to, that of a round too; None if it belongs to none."""
    folders = [] if not model else [Path(model), *Path(model).absolute().parents[:3]]  # RUN/rounds/NNN/model
    return next((path for path in folders if all((path / n).is_file() for n in ("config.yaml", "data.json"))), None)


def run_settings(model: str | None) -> dict[str, Any]:
    """Returns the settings of TAKEN in the config of the run of a model; nothing without a run.

    Raises:
        ValueError: If its config is damaged.
    """
    run = run_of(model)
    if model is None or run is None:
        return {}
    path = run / "config.yaml"
    check_regular("restore", path)
    settings: Any = None
    with suppress(NotYaml, UnicodeDecodeError):
        settings = load_yaml(path.read_text(encoding="utf-8"))
    if isinstance(settings, dict) and settings.get("sigma") == "auto":
        settings["sigma"] = read_note(model_folder(model)).get("sigma")
    good = isinstance(settings, dict) and isinstance(settings.get("sigma", 0.0), int | float)
    operator = settings.get("operator") if isinstance(settings, dict) else None
    good = good and (operator is None or (isinstance(operator, dict) and isinstance(operator.get("class_path"), str)))
    fix = "Give its model/ folder, copied elsewhere, and name the operator"
    check(good, "restore", str(path), "to be the config of a run", "a damaged file", fix)
    return {key: settings[key] for key in TAKEN if key in settings}


def is_ours(operator: Mapping[str, Any] | None) -> bool:
    """Returns whether an operator in a config is one of emfast's: no code of others runs for the sake of a folder."""
    module, _, name = str((operator or {}).get("class_path", "")).rpartition(".")
    exported = vars(importlib.import_module("emfast.operators"))
    return module == "emfast.operators" and not name.startswith("_") and callable(exported.get(name))


def make(operator: Mapping[str, Any] | None) -> Operator | None:
    """Returns an operator of emfast's from its config; None for another one, or none."""
    if operator is None or not is_ours(operator):
        return None
    module, _, name = operator["class_path"].rpartition(".")
    made: Operator = getattr(importlib.import_module(module), name)(**(operator.get("init_args") or {}))
    return made


def describe(operator: Mapping[str, Any]) -> str:
    """Returns an operator in a config as a reader knows it: Mask(missing=0.6)."""
    arguments = {key: value for key, value in (operator.get("init_args") or {}).items() if value is not None}
    inner = ", ".join(f"{key}={value}" for key, value in arguments.items())
    return f"{operator['class_path'].rpartition('.')[2]}({inner})"
