"""Kills a tiny run at every file that it puts into its place, resumes it, and compares its end with a whole run's.

What a killed run leaves is its files, and these change by renaming alone, but for shards, whose names are links. Each
process here brings one file that was not there before and dies at the next one, as by kill -9, with what it was writing
left behind; so every state that the files go through is gone on from. Run as a process of its own: it forks, so that
the imports are paid once. Prints one JSON object.
"""

import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

torch.set_num_threads(1)

from tiny_run import write_config  # noqa: E402

import emfast  # noqa: E402
from emfast._files import read_tensors  # noqa: E402

KILLED = 9
replace, link, rmtree = os.replace, os.link, shutil.rmtree


def place(folder: Path, target: Path) -> str:
    """Returns where a file of a run belongs, whatever the temporary folder that it is written in is called."""
    return re.sub(r"\.tmp-[0-9a-f.]+-", "", str(target.relative_to(folder)))


def run(folder: Path, files: int | None = None) -> int:
    """Trains; dies at the next rename after so many new files. Returns 0, or 1 after an error."""
    ledger, new = folder / "renames", 0
    seen = set(ledger.read_text().split("\n")) if ledger.exists() else set()

    def counted(source: object, target: object, rename: Callable[..., None] = replace) -> None:
        nonlocal new
        if new == files:
            os._exit(KILLED)
        rename(source, target)
        counted_as(place(folder, Path(str(target))))

    def counted_as(name: str) -> None:
        nonlocal new
        if name not in seen:
            new += 1
            seen.add(name)
            ledger.write_text("\n".join(sorted(seen)))
            if name.startswith("half of ") and files is not None:
                os._exit(KILLED)

    def half_removed(path: object, ignore_errors: bool = False) -> None:
        gone = Path(str(path)).name.startswith(".gone-")  # reconstructions that are dropped
        first = next((entry for entry in sorted(Path(str(path)).rglob("*")) if gone and entry.is_file()), None)
        if first is not None and f"half of {place(folder, first)}" not in seen:
            first.unlink()
            counted_as(f"half of {place(folder, first)}")
        rmtree(path, ignore_errors=ignore_errors)

    os.replace, os.link, shutil.rmtree = counted, partial(counted, rename=link), half_removed
    try:
        emfast.train(emfast.Config.from_yaml(write_config(folder, keep=1)))
    except Exception:
        (folder / "log").write_text(traceback.format_exc())
        return 1
    finally:
        os.replace, os.link, shutil.rmtree = replace, link, rmtree
    return 0


def forked(folder: Path) -> int:
    """Runs the command in a child process that dies after its first new file; returns its exit code."""
    child = os.fork()
    if child == 0:
        os._exit(run(folder, 1))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def model(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the weights that a finished run left."""
    return read_tensors(folder / "run" / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def main(folder: Path) -> dict[str, object]:
    """Returns how often the run was killed, the files of both runs, their exit codes, and whether they end alike."""
    for name in ("whole", "parts"):
        (folder / name).mkdir()
    whole, parts, kills = run(folder / "whole"), KILLED, -1  # in this process: the children find all imported
    while parts == KILLED:
        parts, kills = forked(folder / "parts"), kills + 1
    renames = [(folder / name / "renames").read_text().split("\n") for name in ("whole", "parts")]
    logs = [path.read_text() for path in folder.glob("*/log")]
    result = {"codes": (whole, parts), "kills": kills, "renames": renames, "logs": logs}
    result["left"] = sorted(path.parent.name for path in (folder / "parts").rglob("*reconstructions"))
    if (whole, parts) == (0, 0):
        expected, found = model(folder / "whole"), model(folder / "parts")
        result["same"] = all(torch.equal(found[name], value) for name, value in expected.items())
    return result


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
