"""Posterior samplers: one paper, one file."""

from emfast.samplers.base import Sampler as Sampler
from emfast.samplers.conditional import Conditional as Conditional
from emfast.samplers.daps import DAPS as DAPS
from emfast.samplers.defaults import default_sampler as default_sampler
from emfast.samplers.diffpir import DiffPIR as DiffPIR
from emfast.samplers.dps import DPS as DPS
from emfast.samplers.mmps import MMPS as MMPS
from emfast.samplers.pigdm import PiGDM as PiGDM
from emfast.samplers.prior import Prior as Prior
from emfast.samplers.reverse_from_observation import ReverseFromObservation as ReverseFromObservation
from emfast.samplers.scale import choose_scale as choose_scale
from emfast.samplers.scale import data_misfit as data_misfit
from emfast.samplers.warm_start import WarmStart as WarmStart
