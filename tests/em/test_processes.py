"""What a launcher's environment must say, what happens when the others do not come, and what all must have alike."""

import multiprocessing
import socket
from datetime import timedelta

import pytest
import torch
from tiny_run import one_sentence, train
from torch import distributed, nn

from emfast.config import Config, EvaluationConfig, GaussianConfig, MStepConfig
from emfast.em import processes
from emfast.em.given import take
from emfast.em.m_step import Training
from emfast.em.processes import Processes, is_main, join
from emfast.em.run import Run
from emfast.em.trainer import Trainer

CPU = torch.device("cpu")
IMAGES = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9


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


class Network(nn.Sequential):
    """A network with buffers that each process computes of its own images."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))
        self.register_buffer("band", torch.rand(3) < 0.5, persistent=False)

    def forward(self, x, t):
        return super().forward(x)


def begun(folder, of_the_job, images=IMAGES):
    """Returns a run of what is given in Python, as one of the processes of a job has it."""
    training = MStepConfig(initial_steps=2, batch_size=4)
    small = {"gaussian": GaussianConfig(rank=2, rounds=1), "evaluation": EvaluationConfig(samples=0)}
    config = Config(output=str(folder / "run"), m_step=training, device="cpu", **small)
    config, given = take(config, images=images, network=Network())
    return Run(config, None, CPU, of_the_job, given)


class Two(Processes):
    """Two processes that wait for each other without the files of a job."""

    def wait(self):
        distributed.barrier()


def one_of_two(rank, folder):
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # as if nobody had seeded it
    store = distributed.FileStore(str(folder / "store"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    run = begun(folder, Two(rank, 2))
    first = {name: value.clone() for name, value in run.own.state_dict().items()}
    config, path = run.config.m_step, folder / "training.safetensors"
    trainer = Trainer(run.denoiser.network, config, "")
    training = Training(trainer, run.denoiser, IMAGES, seed=0, checkpoint=path, last=2, processes=run.processes)
    training.advance(2, lambda done: None)
    torch.save([first, run.own.network.band, run.denoiser.state_dict()], folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_a_network_of_random_weights_is_that_of_the_first_process(tmp_path):
    fork = multiprocessing.get_context("fork")
    two = [fork.Process(target=one_of_two, args=(rank, tmp_path)) for rank in range(2)]
    for process in two:
        process.start()
    for process in two:
        process.join(120)
    assert [process.exitcode for process in two] == [0, 0]
    (first, band, trained), (other, others_band, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(band, others_band)
    for ours, theirs in ((first, other), (trained, others)):
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert not any(torch.equal(trained[name], value) for name, value in first.items())


def test_a_process_with_other_data(tmp_path):
    begun(tmp_path, Processes())
    with pytest.raises(ValueError, match=r"the observations of .* to be as when it began, got something else"):
        begun(tmp_path, Processes(1, 2), IMAGES.flip(0))
