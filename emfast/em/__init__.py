"""Expectation-maximization: clean diffusion models from corrupted observations."""

from emfast.em.device import prepare
from emfast.em.e_step import e_step
from emfast.em.events import Event, Predicted, Progress, RoundFinished, TrainingLogged
from emfast.em.held_out import measure_held_out
from emfast.em.loop import train
from emfast.em.model import load_model
from emfast.em.observations import Observations
from emfast.em.own_network import load_network
from emfast.em.work import work

__all__ = [
    "Event",
    "Observations",
    "Predicted",
    "Progress",
    "RoundFinished",
    "TrainingLogged",
    "e_step",
    "load_model",
    "load_network",
    "measure_held_out",
    "prepare",
    "train",
    "work",
]
