"""Posterior samplers: one paper, one file."""

from emfast.samplers.base import Sampler
from emfast.samplers.daps import DAPS
from emfast.samplers.defaults import default_sampler
from emfast.samplers.diffpir import DiffPIR
from emfast.samplers.dps import DPS
from emfast.samplers.mmps import MMPS
from emfast.samplers.pigdm import PiGDM
from emfast.samplers.prior import Prior
from emfast.samplers.reverse_from_observation import ReverseFromObservation
from emfast.samplers.scale import choose_scale, data_misfit
from emfast.samplers.warm_start import WarmStart

__all__ = [
    "DAPS",
    "DPS",
    "MMPS",
    "DiffPIR",
    "PiGDM",
    "Prior",
    "ReverseFromObservation",
    "Sampler",
    "WarmStart",
    "choose_scale",
    "data_misfit",
    "default_sampler",
]
