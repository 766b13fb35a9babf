"""What a launcher's environment must say, and what happens when the others do not come."""

import socket
from datetime import timedelta

import pytest
import torch
from tiny_run import one_sentence, train

from emfast.em import processes
from emfast.em.processes import Processes, is_main, join


@pytest.fixture
def environment(monkeypatch):
    """Sets the variables of a launcher."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(processes, "MEETING", timedelta(seconds=1))

    def setting(**variables):
        for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **variables}.items():
            monkeypatch.setenv(name, value)

    return setting


@pytest.mark.parametrize("rank", ["0", "1"])
def test_processes_that_wait_for_nobody(rank, environment, tmp_path, capfd):
    environment(WORLD_SIZE="2", RANK=rank)
    assert train(tmp_path) == 2
    assert one_sentence(capfd.readouterr().err, ["2 processes at 127.0.0.1", "within 1 seconds", "unset WORLD_SIZE"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variables", "word"),
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "1" + "0" * 5000}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "RANK"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "http"}, "MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": ""}, "MASTER_ADDR"),
    ],
)
def test_an_environment_that_is_not_whole(variables, word, environment, tmp_path, capsys):
    environment(**variables)
    assert train(tmp_path) == 2
    assert one_sentence(capsys.readouterr().err, [word, "unset WORLD_SIZE"])
    assert not (tmp_path / "run").exists()


def test_one_process_is_alone(environment, tmp_path):
    for variables in ({}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0"}):
        environment(**variables)
        assert is_main()
        assert join(torch.device("cpu"), tmp_path) == Processes(0, 1)
