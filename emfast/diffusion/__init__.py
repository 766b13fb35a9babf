"""Noise schedules and the denoiser."""

from emfast.diffusion.denoiser import Denoiser
from emfast.diffusion.schedule import EDMSchedule, FlowSchedule, Schedule, VPSchedule

__all__ = ["Denoiser", "EDMSchedule", "FlowSchedule", "Schedule", "VPSchedule"]
