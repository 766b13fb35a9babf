"""The Slurm scripts of the examples, under programs that stand for Slurm's and say how they were called."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SLURM = Path(__file__).parent.parent / "examples" / "slurm"
SCRIPTS = sorted(path.name for path in SLURM.glob("*.sh"))
JOB = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8"}
JOB |= {"SLURM_CPUS_PER_TASK": "8"}
PROGRAMS = {
    "srun": 'echo "cpus $SRUN_CPUS_PER_TASK"; while [ "${1#--kill}" != "$1" ]; do shift; done; exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo n1; else echo "scontrol $*"; touch requeued; fi',
    "torchrun": 'echo "torchrun $*"',
    "emfast": 'echo "emfast $*"; [ -z "${SLEEP:-}" ] && exit; touch started; until [ -e requeued ]; do sleep 0.1; done',
}
CALLS = {
    "one_gpu.sh": "emfast train --config a b.yaml --rounds 2",
    "one_node.sh": "torchrun --standalone --nproc-per-node=8 -m emfast train --config a b.yaml --rounds 2",
    "many_nodes.sh": "torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=n1:32345 "
    "--rdzv-id=12345 -m emfast train --config a b.yaml --rounds 2",
    "workers.sh": "emfast work a b.yaml --wait 30 --rounds 2",
}


@pytest.fixture
def start(tmp_path):
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)

    def started(script, *words, **environment):
        environment = {"PATH": os.environ["PATH"], **JOB, **environment}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(["bash", str(SLURM / script), *words], cwd=tmp_path, env=environment, **pipes)

    return started


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_a_script_starts(start, script):
    process = start(script, "a b.yaml", "--rounds", "2")
    lines = process.communicate(timeout=60)[0].splitlines()
    assert lines == ["cpus 8", CALLS[script]]
    assert process.returncode == 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_without_its_argument_says_what_it_needs(start, script):
    process = start(script)
    text = process.communicate(timeout=60)[0]
    assert "usage: sbatch" in text
    assert process.returncode != 0


def test_a_job_whose_time_is_nearly_up_is_queued_again(start, tmp_path):
    process = start("one_gpu.sh", "mine.yaml", SLEEP="1")
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    text = process.communicate(timeout=60)[0]
    assert "scontrol requeue 12345" in text
    assert process.returncode > 128
