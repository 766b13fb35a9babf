"""Noise schedules and the denoiser."""

from emfast.diffusion.denoiser import Denoiser
from emfast.diffusion.schedule import EDMSchedule, FlowSchedule, Schedule, VPSchedule
from emfast.diffusion.tiled import TiledDenoiser

__all__ = ["Denoiser", "EDMSchedule", "FlowSchedule", "Schedule", "TiledDenoiser", "VPSchedule"]
