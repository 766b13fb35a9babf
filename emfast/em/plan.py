"""Which round comes next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emfast.config import Config


def next_phase(rows: list[dict[str, Any]], config: Config) -> str | None:
    """Returns "warm", "final" or, at the end, None: what the round after these rows is.

    The paper's rule ends the warm-started rounds early: the best scale has not fallen for 3 rounds, or is below
    `switch_scale`.

    Arguments:
        rows: The metrics of the rounds so far.
        config: The config of the run.
    """
    phases = [row["phase"] for row in rows]
    scales = [row["scale"] for row in rows if row["phase"] == "warm" and row["scale"] is not None]
    stalled = len(scales) > 3 and min(scales[-3:]) >= min(scales[:-3])
    switch = (
        config.switch and bool(config.e_step.scales) and bool(scales) and (stalled or scales[-1] < config.switch_scale)
    )
    if "final" not in phases and phases.count("warm") < config.rounds and not switch:
        return "warm"
    return "final" if phases.count("final") < config.final_rounds else None
