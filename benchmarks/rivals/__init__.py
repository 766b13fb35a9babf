"""Published methods that the benchmark of whole methods compares with, one a file.

Each names its reference, says how faithful it is, and has `TASKS`, those it is for (None: all), and `SETTINGS`, what
differs from the config of the task.
"""

from typing import Any


def training(**changes: Any) -> dict[str, Any]:
    """Returns the M-step that emfast's demo had before the continuous schedule, with changes."""
    plain = {
        "initial_steps": 250,
        "steps": 250,
        "batch_size": 64,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "decay": 0.0,
        "noise_levels": "schedule",
        "noise_mean": -1.2,
        "noise_std": 1.2,
        "schedule_share": 0.0,
        "target_images": 0,
    }
    return {**plain, **changes}


def e_step(**changes: Any) -> dict[str, Any]:
    """Returns its E-step on all observations, from pure noise, with changes."""
    return {"warm_start": None, "shard_size": 128, "subset": None, **changes}
