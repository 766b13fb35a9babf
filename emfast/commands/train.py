"""`emfast train`: the whole EM run, with its table, pictures and resumption."""

from __future__ import annotations

from contextlib import closing, suppress
from pathlib import Path

from emfast._yaml import load_yaml
from emfast.commands.display import Display
from emfast.commands.trackers import Trackers
from emfast.config import Config
from emfast.em import Event, Predicted, Progress, TrainingLogged, train
from emfast.em.state import flat
from emfast.reporting import (
    Metrics,
    advice,
    draw_round,
    draw_run,
    draw_summary,
    first_and_last,
    read_metrics,
    write_report,
)

Options = Config


def run(config: Config, yaml: str) -> None:
    """Trains, or resumes, and shows the first against the last round.

    Arguments:
        config: The run.
        yaml: The complete config as text.
    """
    output = Path(config.output)
    trackers = Trackers(config.trackers, output, flat(load_yaml(yaml)))

    def follow(event: Event) -> None:
        if isinstance(event, Progress):
            display.advance(f"round {event.round}: {event.phase}", event.done, event.total)
            return
        if isinstance(event, Predicted):
            display.console.print(str(event), soft_wrap=True)
            return
        if isinstance(event, TrainingLogged):
            trackers.write_training(event.row)
            return
        display.row(event.row)
        draw_round(event.folder)
        draw_summary(output)
        write_report([output])
        trackers.write_round(event.row, event.folder)

    with Display(_earlier(output)) as display, closing(trackers):
        model = train(config, follow)
        if _main_process():
            display.show()  # a run that was finished before has shown nothing yet
    if _main_process():
        rows = read_metrics(output)
        lines = [first_and_last(rows), *filter(None, [advice(rows)])]
        lines += [f"Picture: {draw_run(output)}", f"Report:  {write_report([output])}", f"Model:   {model}"]
        display.console.print("\n".join(lines), soft_wrap=True)


def _earlier(output: Path) -> list[Metrics]:
    """The rounds finished before; `train` itself judges whether the folder is sound."""
    with suppress(OSError, ValueError):
        return read_metrics(output)
    return []


def _main_process() -> bool:
    import torch.distributed as distributed

    return not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank())
