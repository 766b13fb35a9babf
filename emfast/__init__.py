"""Train clean diffusion models from corrupted observations by expectation-maximization.

Everything is reached from here, `emfast.samplers.MMPS` or `emfast.train`, and imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from emfast import adapters as adapters
    from emfast import compilation as compilation
    from emfast import config as config
    from emfast import data as data
    from emfast import diffusion as diffusion
    from emfast import em as em
    from emfast import evaluation as evaluation
    from emfast import nn as nn
    from emfast import operators as operators
    from emfast import ops as ops
    from emfast import random as random
    from emfast import reporting as reporting
    from emfast import samplers as samplers
    from emfast.adapters import accelerate as accelerate
    from emfast.adapters import report as report
    from emfast.adapters import restore as restore
    from emfast.config import Config as Config
    from emfast.dispatch import backend as backend
    from emfast.em import train as train
    from emfast.graph import graphs as graphs

# Where each public name is defined; a module of the package where there is none.
_PLACES: dict[str, str | None] = {
    **dict.fromkeys(("adapters", "compilation", "config", "data", "diffusion", "em", "evaluation", "nn")),
    **dict.fromkeys(("operators", "ops", "random", "reporting", "samplers")),
    **dict.fromkeys(("accelerate", "report", "restore"), "emfast.adapters"),
    "Config": "emfast.config",
    "backend": "emfast.dispatch",
    "graphs": "emfast.graph",
    "train": "emfast.em",
}

if not TYPE_CHECKING:  # else every name would exist for a type checker

    def __getattr__(name):
        """Imports a public name when it is first used, and keeps it."""
        if name not in _PLACES:
            raise AttributeError(f"module 'emfast' has no attribute {name!r}")
        place = _PLACES[name]
        if place is None:
            return importlib.import_module(f"emfast.{name}")
        value = globals()[name] = getattr(importlib.import_module(place), name)
        return value

    def __dir__():
        """Returns the public names, and those of the module."""
        return sorted({*globals(), *_PLACES})
