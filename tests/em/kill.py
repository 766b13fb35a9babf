"""Kills a tiny run at random moments, resumes it, and compares its end with that of an uninterrupted run.

Run as a process of its own: it forks, so that the imports are paid once. Prints one JSON object.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

torch.set_num_threads(1)

from tiny_run import train  # noqa: E402

import emfast.em.run  # noqa: E402, F401
from emfast._files import read_tensors  # noqa: E402

FLAGS = ("--m_step.steps", "12", "--m_step.initial_steps", "12", "--m_step.final_steps", "12")


def start(folder: Path) -> int:
    """Starts the run in a child process."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        code = train(folder, *FLAGS)
        os._exit(code)
    return child


def model(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the weights that a finished run left."""
    return read_tensors(folder / "run" / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def written(folder: Path) -> int:
    """Returns how many files a run has."""
    return sum(len(files) for _, _, files in os.walk(folder / "run"))


def main(folder: Path, kills: int, seed: int) -> dict[str, object]:
    """Returns how many kills, finished runs, and runs that ended with another model there were."""
    (folder / "whole").mkdir()
    begin = time.perf_counter()
    assert os.waitpid(start(folder / "whole"), 0)[1] == 0, (folder / "whole" / "log").read_text()
    duration = time.perf_counter() - begin
    expected, files = model(folder / "whole"), written(folder / "whole")
    moments = random.Random(seed)
    result = {"kills": 0, "finished": 0, "different": 0, "failed": 0, "stages": []}
    while result["kills"] < kills or result["finished"] == 0:
        part = folder / f"part{result['finished']}"
        part.mkdir(exist_ok=True)
        child = start(part)
        # A moment is a number of files and a while after: by time alone a busy machine would only ever be killed early.
        target = written(part) + moments.randint(0, files // 4) if result["kills"] < kills else files + 1
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and written(part) < target:
            time.sleep(0.001)
        if ended[0] == 0:
            time.sleep(moments.uniform(0, 0.05 * duration))
            ended = os.waitpid(child, os.WNOHANG)
        if ended[0] == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            result["kills"] += 1
            result["stages"].append(written(part))
            continue
        result["finished"] += 1
        found = model(part) if ended[1] == 0 else {}
        result["failed"] += ended[1] != 0
        result["different"] += not all(torch.equal(found.get(name, torch.empty(0)), v) for name, v in expected.items())
        if ended[1] != 0:
            result["log"] = (part / "log").read_text()[-2000:]
    return result


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
