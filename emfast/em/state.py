"""The folder of a run: what is in it, and whether what is asked for may go on in it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emfast._check import check, check_regular, message
from emfast._files import is_unused, remove_folder, write_text
from emfast._json import to_json
from emfast._records import check_record, read_record, write_record
from emfast._yaml import check_yaml
from emfast.em.announcement import NAME as ANNOUNCEMENT
from emfast.em.lock import NAME as LOCK
from emfast.em.meeting import PREFIX as MEETING

RECONSTRUCTIONS, SAMPLES = "reconstructions", "samples"  # in the folder of a round
# May differ between the command that began a run and the one that resumes it: they do not change its results.
# But for rounding, that is: on the size of batches a GPU's memory has a say.
FREE = {
    "output",
    "device",
    "accelerate",
    "trackers",
    "rounds",
    "final_rounds",
    "keep",
    "e_step.batch_size",
    "e_step.shard_size",
    "m_step.checkpoint",
    "evaluation.pictures",
    # Where the data lie; what they are is compared by itself.
    "data.images",
    "data.observations",
    "data.clean",
    "data.reference",
}


MADE = {"observations", "operator"}  # what the observations were made of
LATER = {"reference images", "initial model"}  # what may not be noted yet, or not be looked at now
NUMBER = (int, float, type(None))
NUMBERS = (
    *("psnr", "ssim", "misfit", "fd", "held_out_psnr", "held_out_variance", "scale"),
    *("network_evaluations", "seconds_e_step", "seconds_m_step"),
    *("training_steps", "loss", "gradient_norm", "learning_rate", "images_per_second"),
)
TRAINING = "seconds.json"  # of a round: the seconds and the log of its training


def check_row(function: str, name: str, row: Any) -> None:
    """Raises a ValueError unless a JSON value is the metrics of a round.

    Arguments:
        function: The public function the caller used.
        name: Where the value is from.
        row: The value.
    """
    kinds = {key: NUMBER for key in NUMBERS if isinstance(row, dict) and key in row}
    check_record(function, name, row, round=int, phase=str, **kinds)


class Stopwatch:
    """Seconds since it was made, plus those an earlier process has spent on the same work."""

    def __init__(self, before: float = 0.0) -> None:
        self.start = time.perf_counter() - before

    @property
    def seconds(self) -> float:
        """The seconds so far."""
        return time.perf_counter() - self.start


class RunFolder:
    """`config.yaml`, `data.json`, `metrics.jsonl`, `rounds/NNN/` and `model/` of a run, and `e_step.json` for guests.

    A round folder holds `scale.json`, `reconstructions/` (of the last rounds), `training.safetensors` (only while it
    trains), `seconds.json` (with the log of the training), `model/`, `samples/` (only while they are drawn and
    measured), `preview.safetensors` and, written last, `row.json`: the round is finished if that exists.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.model = self.path / "model"

    def round(self, number: int) -> Path:
        """Returns the folder of a round; 0 is the initial model."""
        return self.path / "rounds" / f"{number:03d}"

    def again(self, number: int) -> str:
        """Returns what to do about a damaged piece of a finished round, which comes out the same a second time."""
        return f"Delete {self.round(number)} and run again: the round is made anew, the same as before"

    def rows(self) -> list[dict[str, Any]]:
        """Returns the metrics of the finished rounds, in order."""
        rows: list[dict[str, Any]] = []
        while (path := self.round(len(rows)) / "row.json").exists():
            row = read_record(path)
            check_row("train", str(path), row)
            check(row["round"] == len(rows), "train", str(path), f"to be of round {len(rows)}", row["round"])
            rows.append(row)
        return rows

    def finish(self, row: dict[str, Any]) -> None:
        """Marks a round as finished and brings metrics.jsonl up to date."""
        write_record(self.round(row["round"]) / "row.json", row)
        self.write_metrics()

    def drop(self, keep: int) -> None:
        """Removes the samples of finished rounds, and their reconstructions but those of the last few.

        Models and pictures stay.

        A round is made of those of the round before alone. If these are damaged they are made again, of the ones before
        them; what was dropped comes out the same again too.

        Arguments:
            keep: Of how many rounds they stay.
        """
        finished = len(self.rows())
        for number in range(finished):
            remove_folder(self.round(number) / SAMPLES)
            if number < finished - keep:
                remove_folder(self.round(number) / RECONSTRUCTIONS)

    def write_metrics(self) -> None:
        """Writes metrics.jsonl from the rows, unless it holds them."""
        path, text = self.path / "metrics.jsonl", "".join(to_json(row) + "\n" for row in self.rows())
        if text and (not path.is_file() or path.read_bytes() != text.encode()):
            write_text(path, text)

    def claim(self, config: str, data: dict[str, str], defaults: Mapping[str, Any] | None = None) -> None:
        """Begins a run, or goes on with it if config and data are those it began with.

        Until its first round is finished a run may become another one: what it has done of that round is removed.

        Arguments:
            config: The complete config as YAML.
            data: Fingerprints of the data by name.
            defaults: What a setting was in a run that was begun before there was that setting, by names with dots.
        Raises:
            ValueError: If the folder belongs to another run, or holds something else; the difference is named.
            OSError: If it cannot be written.
        """
        if not is_unused(self.path, LOCK, MEETING):
            ours = self.path.is_dir() and any((self.path / name).exists() for name in ("config.yaml", "data.json"))
            fix = "Choose another output, or delete the folder"
            check(ours, "train", f"output {self.path}", "to be empty or an emfast run", "other files", fix)
        try:
            self._compare(config, data, defaults or {})
        except ValueError:
            if any(self.path.glob("rounds/*/row.json")):
                raise
            for path in (self.path / "rounds", self.path / "model"):
                remove_folder(path)
            for name in ("data.json", "batch_size.json", ANNOUNCEMENT):
                (self.path / name).unlink(missing_ok=True)
        noted = read_record(path) if (path := self.path / "data.json").exists() else {}
        if noted != {**noted, **data}:  # what came later is compared from now on
            write_record(path, {**noted, **data})
        write_text(self.path / "config.yaml", config)

    def _compare(self, config: str, data: dict[str, str], defaults: Mapping[str, Any]) -> None:
        """Raises a ValueError unless config and data are those of the folder, as far as it has any."""
        import yaml

        if (path := self.path / "config.yaml").exists():
            before, now = _read_config(path), flat(yaml.safe_load(config))
            fix = "Put it back, or choose another output"
            for key in sorted((before.keys() | now.keys()) - _free(now)):
                old, new = before.get(key, defaults.get(key)), now.get(key)
                check(old == new, "train", key, f"to stay {old}, as in {path}", f"{new}", fix)
        self.check_data(data)

    def check_data(self, data: dict[str, str]) -> None:
        """Raises a ValueError unless data are those of the folder, as far as it has any; fingerprints by name."""
        if (path := self.path / "data.json").exists():
            noted = read_record(path)
            fix = "Put them back, or choose another output"
            names = (noted.keys() | data.keys()) - (LATER - (noted.keys() & data.keys()))
            for name in sorted(names if "operator" in noted else names - MADE):  # of older runs in another way
                found = "something else" if name in data else "none"
                same = noted.get(name) == data.get(name)
                check(same, "train", f"the {name} of {self.path}", "to be as when it began", found, fix)


def _free(config: dict[str, Any]) -> set[str]:
    """Returns what may change in a flat config: a continuous run renews whole shards, and may end its decay with it."""
    if config.get("schedule") != "continuous":
        return FREE
    return FREE - {"e_step.shard_size"} - ({"rounds"} if config["m_step.decay"] else set())


def _read_config(path: Path) -> dict[str, Any]:
    """Returns the config of a run, flat."""
    import yaml

    check_regular("train", path)
    check_yaml(path, "train")
    try:
        return flat(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, AttributeError, ValueError, RecursionError):  # of a date, of depth
        fix = "Delete the file: it is written again, as the command has it"
        raise ValueError(message("train", str(path), "to be the config of a run", "a damaged file", fix)) from None


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {"a.b": value} of nested mappings; `init_args` and `class_path` levels are left out of the names.

    Arguments:
        tree: The mappings.
        prefix: What stands before all names.
    """
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = prefix.rstrip(".") if key == "class_path" else prefix if key == "init_args" else f"{prefix}{key}"
        if isinstance(value, dict):
            found |= flat(value, name if key == "init_args" else f"{name}.")
        else:
            found[name] = value
    return found
