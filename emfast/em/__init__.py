"""Expectation-maximization: clean diffusion models from corrupted observations."""

from emfast.em.e_step import e_step
from emfast.em.events import Event, Progress, RoundFinished
from emfast.em.loop import train
from emfast.em.model import load_model, prepare
from emfast.em.observations import Observations
from emfast.em.work import work

__all__ = ["Event", "Observations", "Progress", "RoundFinished", "e_step", "load_model", "prepare", "train", "work"]
