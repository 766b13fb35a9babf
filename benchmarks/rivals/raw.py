"""The raw observations as if they were the images: what not to correct them costs. A floor, no method.

A prior is trained on the observations, brought to images by the adjoint of the operator (a missing pixel is grey), and
on the clean images. Its own restoration is the observation as it is.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import rivals
from emfast import Config
from emfast.em.inputs import Inputs
from rivals import Point, prior, timed

TASKS = None  # all
SETTINGS: dict[str, Any] = {}


def points(config: Config, inputs: Inputs) -> Iterator[Point]:
    """Yields the prior of the raw observations."""
    observations, folder = inputs.observations, Path(config.output)
    ids = torch.arange(len(observations))
    y = observations.read(ids)
    images = observations.operator.adjoint(y, observations.operator.parameters(ids, tuple(y.shape[1:]))).clamp(-1, 1)
    clean = images[:0] if inputs.clean is None else inputs.clean[:]
    with timed(folder) as cost:
        denoiser = prior(config, torch.cat((images, clean)), folder)
    yield Point(0, 3 * config.m_step.batch_size * rivals.STEPS, **cost, denoiser=denoiser, own=images)
