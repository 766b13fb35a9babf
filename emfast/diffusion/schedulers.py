"""What a diffusers scheduler says about the network that was trained with it: schedule and prediction, by its class."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, NamedTuple

from emfast._check import check, message
from emfast.diffusion.schedule import EDMSchedule, FlowSchedule, Prediction, Schedule, VPSchedule


class Reading(NamedTuple):
    """The schedule of a network, what it predicts, and the standard deviation of its data (EDM's only)."""

    schedule: Schedule
    prediction: Prediction
    sigma_data: float = 0.5


PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
FLOW_PREDICTIONS: dict[str, Prediction] = {"flow_prediction": "flow", "epsilon": "eps", "sample": "x0"}
TABLE = (  # what the table of a discrete schedule and its network are made of
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
)
ADVICE = "Name the scheduler of the training: a DDPM, EDM or flow-matching one"


def read_scheduler(scheduler: Any, name: str = "the scheduler") -> Reading:
    """Returns what a diffusers scheduler says about its network.

    How the scheduler spaces its steps (Karras sigmas, say) and solves the reverse process does not matter to a network.

    Arguments:
        scheduler: Of the discrete DDPM family (DDPM, DDIM, PNDM, DPMSolver, Euler, Heun, UniPC, ...), EDM's or
            flow matching's.
        name: What a sentence calls it.
    Raises:
        TypeError: If it is none of them.
        ValueError: If it asks for something that no network is known to be trained with.
    """
    known, kind = known_name(scheduler), type(scheduler).__name__
    if known is None:
        raise TypeError(message("read_scheduler", name, "to be of a known class", kind, ADVICE))
    return READERS[known](scheduler, scheduler.config, name)


def known_name(scheduler: Any) -> str | None:
    """Returns the class, or base class, by whose name a scheduler is known; None if it is not."""
    if not hasattr(scheduler, "config"):
        return None
    return next((kind.__name__ for kind in type(scheduler).__mro__ if kind.__name__ in READERS), None)


def load_scheduler(config: Mapping[str, Any], path: str) -> Any:
    """Returns the diffusers scheduler of a config, for a DDPMPipeline.

    One of the discrete family becomes a DDPMScheduler (or stays a DDIMScheduler) of the same table: DDPMPipeline does
    not scale the input of the network as others ask for. So the packages that some classes need are not needed.

    Arguments:
        config: What `scheduler_config.json` holds.
        path: The file, for sentences.
    Raises:
        ValueError: If the class is not known, or its config not right.
    """
    import diffusers

    name = config.get("_class_name")
    good = isinstance(name, str) and name in READERS
    check(good, "load_model", f"_class_name of {path}", "to be that of a known scheduler", name or "none", ADVICE)
    kind = getattr(diffusers, str(name))
    values = {key: value for key, value in config.items() if not key.startswith("_")}
    if "_backends" in vars(kind):  # a stand-in for a class that needs a package that is not there
        kind, values = diffusers.DDPMScheduler, {key: values[key] for key in TABLE if key in values}
    try:
        scheduler = kind.from_config(values)
        read_scheduler(scheduler, path)
    except Exception as error:  # diffusers raises whatever its parts do
        if path in str(error):  # a sentence of ours
            raise
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ValueError(message("load_model", path, f"to be the config of a {name}", reason)) from error
    return for_pipeline(scheduler)


def for_pipeline(scheduler: Any) -> Any:
    """Returns a scheduler of the same schedule and prediction that a DDPMPipeline samples with."""
    from diffusers import DDPMScheduler

    name, config = known_name(scheduler), scheduler.config
    discrete = READERS.get(str(name)) is _discrete and not config.get("use_flow_sigmas")
    if name in ("DDPMScheduler", "DDIMScheduler") or not discrete:
        return scheduler
    return DDPMScheduler(**{key: config[key] for key in TABLE if key in config})


def _discrete(scheduler: Any, config: Mapping[str, Any], name: str) -> Reading:
    """The DDPM family, whose multistep solvers serve flow matching too."""
    if config.get("use_flow_sigmas"):
        prediction = _prediction(config, FLOW_PREDICTIONS, name, "flow_prediction, with flow sigmas")
        return Reading(FlowSchedule(config["num_train_timesteps"], _positive(config, "flow_shift", name)), prediction)
    kind = config.get("timestep_type", "discrete")
    check(kind == "discrete", "read_scheduler", f"timestep_type of {name}", "to be discrete", kind, ADVICE)
    prediction = _prediction(config, PREDICTIONS, name, "epsilon, v_prediction or sample, without flow sigmas")
    return Reading(VPSchedule(scheduler.alphas_cumprod), prediction)


def _edm(scheduler: Any, config: Mapping[str, Any], name: str) -> Reading:
    """EDM's preconditioning."""
    prediction = _prediction(config, {"epsilon": "edm"}, name, "epsilon, with EDM's preconditioning")
    schedule = EDMSchedule(config["sigma_min"], config["sigma_max"], config.get("rho", 7.0))
    return Reading(schedule, prediction, _positive(config, "sigma_data", name))


def _flow(scheduler: Any, config: Mapping[str, Any], name: str) -> Reading:
    """Flow matching; a shift that depends on the size of the image only moves the steps, and is left out."""
    inverted = bool(config.get("invert_sigmas"))
    check(not inverted, "read_scheduler", f"invert_sigmas of {name}", "to be false", inverted, ADVICE)
    shift = 1.0 if config.get("use_dynamic_shifting") else _positive(config, "shift", name)
    return Reading(FlowSchedule(config["num_train_timesteps"], shift), "flow")


def _prediction(config: Mapping[str, Any], known: Mapping[str, Prediction], name: str, requirement: str) -> Prediction:
    kind = config.get("prediction_type", "epsilon")
    check(
        isinstance(kind, str) and kind in known,
        "read_scheduler",
        f"prediction_type of {name}",
        f"to be {requirement}",
        kind,
        ADVICE,
    )
    return known[kind]


def _positive(config: Mapping[str, Any], key: str, name: str) -> float:
    value = config.get(key)
    good = isinstance(value, Real) and 0 < float(value) < math.inf
    check(good, "read_scheduler", f"{key} of {name}", "to be positive and finite", value)
    return float(config[key])


READERS: dict[str, Callable[[Any, Mapping[str, Any], str], Reading]] = {
    **dict.fromkeys(
        (
            "DDIMInverseScheduler",
            "DDIMParallelScheduler",
            "DDIMScheduler",
            "DDPMParallelScheduler",
            "DDPMScheduler",
            "DEISMultistepScheduler",
            "DPMSolverMultistepInverseScheduler",
            "DPMSolverMultistepScheduler",
            "DPMSolverSDEScheduler",
            "DPMSolverSinglestepScheduler",
            "EulerAncestralDiscreteScheduler",
            "EulerDiscreteScheduler",
            "HeunDiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler",
            "KDPM2DiscreteScheduler",
            "LMSDiscreteScheduler",
            "PNDMScheduler",
            "RePaintScheduler",
            "SASolverScheduler",
            "UniPCMultistepScheduler",
        ),
        _discrete,
    ),
    **dict.fromkeys(("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"), _edm),
    **dict.fromkeys(("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"), _flow),
}
