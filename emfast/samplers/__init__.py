"""Posterior samplers: one paper, one file."""

from emfast.samplers.base import Sampler
from emfast.samplers.dps import DPS
from emfast.samplers.mmps import MMPS
from emfast.samplers.prior import Prior
from emfast.samplers.reverse_from_observation import ReverseFromObservation
from emfast.samplers.scale import choose_scale, data_misfit

__all__ = ["DPS", "MMPS", "Prior", "ReverseFromObservation", "Sampler", "choose_scale", "data_misfit"]
