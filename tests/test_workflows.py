"""The workflows of GitHub: what a linter of them would find, as far as it can be told here."""

import os
import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TOP = {"name", "on", "jobs", "env", "permissions", "concurrency", "defaults"}
JOB = {"runs-on", "steps", "needs", "strategy", "timeout-minutes", "env", "if", "name", "permissions"}
STEP = {"uses", "run", "with", "env", "name", "if", "id", "working-directory", "shell"}
PROGRAMS = {"python", "pipx", "make"}  # of the image, or set up by a step before


JOBS = {
    f"{path.stem}-{name}": job for path in WORKFLOWS for name, job in yaml.safe_load(path.read_text())["jobs"].items()
}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_what_belongs_there(path):
    tree = yaml.safe_load(path.read_text())
    assert {"on" if key is True else key for key in tree} <= TOP  # YAML 1.1 reads on as a truth value
    events = tree[True]
    assert set(events) <= {"push", "pull_request", "workflow_dispatch", "schedule"}
    assert {need for job in tree["jobs"].values() for need in needs(job)} <= set(tree["jobs"])


def needs(job):
    found = job.get("needs", [])
    return [found] if isinstance(found, str) else found


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_job_can_run(job):
    assert set(job) <= JOB
    assert {"runs-on", "steps"} <= set(job)
    matrix = job.get("strategy", {}).get("matrix", {})
    for used in re.findall(r"\$\{\{\s*(.*?)\s*\}\}", yaml.safe_dump(job)):
        assert used.startswith("matrix.")
        assert used.removeprefix("matrix.") in matrix
    assert all(isinstance(value, str) for values in matrix.values() for value in values)  # 3.10 is not 3.1
    for step in job["steps"]:
        assert set(step) <= STEP
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+(\.\d+)*", step["uses"])
            continue
        program, *words = shlex.split(step["run"])
        assert program in PROGRAMS or os.access(ROOT / program, os.X_OK), program
        for word in words:
            assert not word.endswith((".py", ".sh")) or (ROOT / word).is_file(), word


def test_what_is_downloaded_was_uploaded():
    for path in WORKFLOWS:
        steps = [step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"]]
        used = " ".join(step.get("uses", "") for step in steps)
        assert "download-artifact" not in used or "upload-artifact" in used
        names = [step["with"]["name"] for step in steps if "upload-artifact" in step.get("uses", "")]
        assert len(names) == len(set(names))
