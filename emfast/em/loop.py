"""Expectation-maximization: E-step and M-step in turn until the plan is done."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from emfast._check import check
from emfast.em.events import Event
from emfast.em.lock import held
from emfast.em.model import resolve_device
from emfast.em.plan import next_phase
from emfast.em.processes import is_main, join
from emfast.em.run import Run

if TYPE_CHECKING:
    from emfast.config import Config


def train(config: Config, callback: Callable[[Event], None] | None = None) -> Path:
    """Runs EM, or goes on with it where an earlier process was interrupted, and returns the folder of the model.

    As `emfast train`, without its tables and pictures: `emfast.reporting.draw_run(config.output)` draws those.

    Arguments:
        config: The run. It is kept in the folder as `config.yaml`, and must not change on resuming.
        callback: Called with `Progress` and `RoundFinished` events, in the main process only.
    Raises:
        ValueError: If config and data do not fit together, or the folder belongs to another run.
        RuntimeError: If another process runs in the folder.
        OSError: If the folder cannot be written.

    References:
        | An Expectation-Maximization Algorithm for Training Clean Diffusion Models from Corrupted Observations
        | (Bai et al., 2024), arXiv 2407.01014
    """
    fix = "Give emfast.Config(...), or Config.from_yaml(file)"
    check(hasattr(config, "to_yaml"), "train", "config", "to be an emfast.Config", type(config), fix, TypeError)
    free = Path(config.output).is_dir() or not Path(config.output).exists()  # a file is refused by the run itself
    holding = held(config.output) if is_main() and free else nullcontext()
    with holding, join(device := resolve_device(config.device), config.output) as processes:
        run = Run(config, callback, device, processes)
        if not run.folder.rows():
            run.initial_round()
        while phase := next_phase(run.folder.rows(), config):
            run.round(len(run.folder.rows()), phase)
        run.publish()
    return run.folder.model
