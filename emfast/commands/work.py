"""`emfast work`: joins the E-steps of a run that goes on elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass

from emfast._check import check
from emfast.commands.display import Display
from emfast.em import Progress, RoundFinished, work


@dataclass
class Options:
    """Joins the E-steps of a run: as many processes as there are, on any machines that share its folder.

    Args:
        run: The output folder of `emfast train`, which goes on elsewhere, with the same files at the same paths.
        device: "auto", "cpu", "cuda", "cuda:1", ... of this process.
        accelerate: Computes the network with emfast's kernels; none: where they were measured to be faster, on CPUs
            and, in bfloat16, on GPUs.
        batch_size: Observations reconstructed together; none: as in the run.
        wait: Minutes without anything to do (the run trains, or has not begun) after which it ends.
    """

    run: str
    device: str = "auto"
    accelerate: bool | None = None
    batch_size: int | None = None
    wait: float = 60.0

    def __post_init__(self) -> None:
        check(self.batch_size is None or self.batch_size > 0, "work", "batch_size", "to be positive", self.batch_size)
        check(0 <= self.wait < math.inf, "work", "wait", "to be >= 0 and finite", self.wait)


def run(options: Options, yaml: str) -> None:
    """Works until the run is finished, or has nothing to do for too long.

    Arguments:
        options: What to join.
        yaml: The options as text.
    """

    def follow(event: Progress | RoundFinished) -> None:
        if isinstance(event, Progress):
            display.advance(f"round {event.round}: {event.phase}", event.done, event.total)

    with Display() as display:
        done = work(
            options.run,
            device=options.device,
            accelerate=options.accelerate,
            batch_size=options.batch_size,
            wait=60 * options.wait,
            callback=follow,
        )
    display.console.print(f"Done: {done} observations", soft_wrap=True)
