"""A run small enough for tests: `emfast` in this process, on 12 x 12 pixels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import yaml
from PIL import Image

from emfast.cli import main

CONFIG = {
    "data": {"size": 12, "limit": 24, "clean_count": 16, "reference": None},
    "operator": {"class_path": "Mask", "init_args": {"missing": 0.6}},
    "sampler": {"class_path": "DPS", "init_args": {"steps": 3}},
    "network": {"channels": [8, 16], "attention": [1], "groups": 4, "head_dim": 8, "layers": 1},
    "e_step": {"batch_size": 8, "shard_size": 8, "subset": 16},
    "m_step": {"initial_steps": 4, "steps": 4, "final_steps": 4, "batch_size": 8, "checkpoint": 2},
    "evaluation": {"samples": 16, "steps": 2, "pictures": 4},
    "rounds": 1,
    "final_rounds": 1,
    "device": "cpu",
}


def write_config(folder: Path, **changes: object) -> Path:
    """Writes CONFIG with changes at the top level; returns the file."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "output": str(folder / "run"), **changes}))
    return path


def train(folder: Path, *flags: str) -> int:
    """Runs `emfast train` with CONFIG and flags; the run is `folder/run`, its pictures are blank."""
    with blank_pictures():
        return main(["train", "--config", str(write_config(folder)), *flags])


@contextmanager
def blank_pictures() -> Iterator[None]:
    """Writes one pixel where matplotlib would draw a picture, which takes longer than all the rest of a tiny run."""

    def draw(*arguments: object, **options: object) -> None:
        file = next(argument for argument in arguments if hasattr(argument, "write"))
        Image.new("L", (1, 1)).save(file, format="PNG")

    with patch("emfast.reporting.run.draw_rows", draw), patch("emfast.reporting.run.draw_summary_figure", draw):
        yield


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Returns the content and the time of change of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def one_sentence(text: str, words: Sequence[str] = ()) -> bool:
    """Whether stderr is one line without a traceback that holds all the words."""
    lines = text.strip().split("\n")
    return len(lines) == 1 and "Traceback" not in text and all(word in text for word in words)
