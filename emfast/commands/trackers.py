"""A run in the trackers of experiments that accelerate knows: TensorBoard, Weights & Biases, MLflow and others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from emfast._check import message
from emfast._files import read_tensors
from emfast._records import read_record, write_record
from emfast._settings import unknown
from emfast.em.training_log import LEVELS
from emfast.reporting import PREVIEW, to_grid

TRAINING = ("loss", "gradient_norm", "learning_rate", "images_per_second")
ROUND = (
    *("psnr", "ssim", "misfit", "fd", "held_out_psnr", "held_out_variance", "scale"),
    *("network_evaluations", "seconds_e_step", "seconds_m_step"),
)
IDENTITY = "wandb.json"


class Trackers:
    """Writes the config, what training logs, and the metrics and pictures of every round; by training steps.

    The trackers begin with the first thing that is written: a run that is refused leaves nothing behind.

    Arguments:
        names: Their names as accelerate has them, with commas between.
        run: The folder of the run; `tensorboard/` and `wandb/` are in it.
        settings: The config, by dotted names.
    Raises:
        ValueError: If one is not known.
        ImportError: If its package is not installed.
    """

    def __init__(self, names: str, run: Path, settings: Mapping[str, Any]) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

        known = {str(name): kind for name, kind in LOGGER_TYPE_TO_CLASS.items()}
        available = {str(name) for name in get_available_trackers()}
        self.kinds = {}
        for name in filter(None, (part.strip() for part in names.split(","))):
            if name not in known:
                raise ValueError(unknown("train", "a tracker", name, known))
            if name not in available:
                fix = f"Install it with `pip install {name}`, or leave it out of trackers"
                raise ImportError(message("train", f"the package {name}", "to be installed", "none", fix))
            self.kinds[name] = known[name]
        self.run, self.settings, self.trackers = run, settings, list[Any]()

    def write_training(self, row: Mapping[str, Any]) -> None:
        """Writes what training logged.

        Arguments:
            row: As a `TrainingLogged` event has it.
        """
        values = {f"training/{name}": row[name] for name in TRAINING if row[name] is not None}
        losses = zip(LEVELS, row["loss_by_noise"], strict=True)
        values |= {f"loss at noise/{level}": loss for level, loss in losses if loss is not None}
        for tracker in self._begun():
            tracker.log(values, step=row["step"])

    def write_round(self, row: Mapping[str, Any], folder: Path) -> None:
        """Writes a finished round.

        Arguments:
            row: Its metrics.
            folder: `rounds/NNN`, with its preview.
        """
        values = {f"round/{name}": row[name] for name in ("round", *ROUND) if row.get(name) is not None}
        preview = read_tensors(folder / PREVIEW).items()
        pictures = {name: to_grid(x, 8)[None] for name, x in preview if x.ndim == 4 and len(x) and name != "mask"}
        for tracker in self._begun():
            tracker.log(values, step=row["training_steps"])
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images(pictures, step=row["training_steps"], **layout)

    def close(self) -> None:
        """Ends what has begun."""
        for tracker in self.trackers:
            tracker.finish()
        self.trackers = []

    def _begun(self) -> Iterable[Any]:
        """Returns the trackers, begun."""
        if self.kinds and not self.trackers:
            from accelerate import PartialState

            PartialState()  # what accelerate logs by
            for name, kind in self.kinds.items():
                again = (self.run / name).exists()  # the settings of a resumed run are there
                tracker = self._make(name, kind)
                tracker.main_process_only = False  # there are none in the others
                tracker.start()
                if not again:
                    tracker.store_init_configuration(self._simple())
                self.trackers.append(tracker)
        return self.trackers

    def _make(self, name: str, kind: Any) -> Any:
        """Returns a tracker of a kind."""
        if name == "tensorboard":
            return kind("tensorboard", str(self.run))
        if name == "wandb":
            return kind("emfast", name=self.run.name, dir=str(self.run), id=self._identity(), resume="allow")
        (self.run / name).mkdir(exist_ok=True)
        return kind("emfast", str(self.run / name)) if kind.requires_logging_directory else kind("emfast")

    def _identity(self) -> str:
        """Returns the name by which Weights & Biases knows the run: a resumed one goes on with its curves."""
        import secrets

        path = self.run / IDENTITY
        if not path.exists():
            write_record(path, {"id": secrets.token_hex(4)})
        return str(read_record(path, id=str)["id"])

    def _simple(self) -> dict[str, Any]:
        """Returns the settings, what is no number or text as text."""
        return {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in self.settings.items()}
