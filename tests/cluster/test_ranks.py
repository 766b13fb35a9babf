"""Processes of one job: if one dies the others end, and a job of another size goes on."""

import ctypes
import os
import secrets
import signal
import socket
import subprocess
from contextlib import ExitStack

import pytest
from tiny_run import one_sentence

from cluster.hosts import Host, close, config, until


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def job(stack, words, folder, world, address="127.0.0.1", before=None):
    """Begins the processes of a job, each on a machine of its own."""
    port = free_port()
    hosts = []
    for rank in range(world):
        variables = {"RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": address, "MASTER_PORT": port}
        variables = {name: str(value) for name, value in variables.items()}
        settings = {"machine": f"{rank:08d}", "variables": variables, "before": before and before(rank)}
        hosts.append(stack.enter_context(Host(words, folder / f"log-{rank}", **settings)))
    return hosts


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run that one process made."""
    folder = tmp_path_factory.mktemp("alone")
    with Host(["train", "--config", config(folder, 0.0)], folder / "log") as host:
        assert host.end() == 0, host.said
    return folder


@pytest.mark.parametrize("phase", ["e-step", "m-step"])
@pytest.mark.parametrize(("killed", "number"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_one_dies_and_a_smaller_job_goes_on(phase, killed, number, alone, tmp_path):
    words = ["train", "--config", config(tmp_path, 0.2)]
    round_1 = tmp_path / "run" / "rounds" / "001"
    sign = "reconstructions/claims-00000" if phase == "e-step" else "training.safetensors"
    with ExitStack() as stack:
        hosts = job(stack, words, tmp_path, 3)  # of a batch of 8
        until(lambda: (round_1 / sign).exists())
        hosts[killed].send(number)
        for rank, host in enumerate(hosts):
            if rank != killed:
                assert host.end(60) == 2, host.said
                assert one_sentence(host.said.splitlines()[-1], ["all processes of the job to go on", "same command"])
    with ExitStack() as stack:
        for host in job(stack, words, tmp_path, 2):
            assert host.end() == 0, host.said
    assert close(alone, tmp_path)
    assert not list((tmp_path / "run").glob(".job-*"))


# ------------------------------------------------------------------------- two hosts with a cable between them

NAMESPACE = 0x40000000  # CLONE_NEWNET


def command(*words):
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


@pytest.fixture
def cable():
    """The names of two network namespaces with a cable between them, at 10.77.0.1 and 10.77.0.2."""
    names = [f"emfast-{secrets.token_hex(3)}-{rank}" for rank in range(2)]
    ends = [f"em{secrets.token_hex(4)}" for rank in range(2)]
    try:
        for name in names:
            command("ip", "netns", "add", name)
        command("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for rank, (name, end) in enumerate(zip(names, ends, strict=True)):
            command("ip", "link", "set", end, "netns", name)
            command("ip", "-n", name, "addr", "add", f"10.77.0.{rank + 1}/24", "dev", end)
            for device in ("lo", end):
                command("ip", "-n", name, "link", "set", device, "up")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', error)}")
    else:
        yield names, ends
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def enter(name):
    """Moves this process into a network namespace."""
    with open(f"/var/run/netns/{name}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), NAMESPACE):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.mark.parametrize("cut", [False, True])
def test_two_hosts(cut, cable, alone, tmp_path, monkeypatch):
    """With a shared folder and a network of their own; when the cable is cut, both end with a sentence."""
    from datetime import timedelta

    from emfast.em import processes

    names, ends = cable
    monkeypatch.setattr(processes, "PATIENCE", timedelta(seconds=5))  # ten minutes, for those who are not in a test
    words = ["train", "--config", config(tmp_path, 0.1)]

    def before(rank):
        def prepare():
            enter(names[rank])
            os.environ["GLOO_SOCKET_IFNAME"] = ends[rank]

        return prepare

    with ExitStack() as stack:
        hosts = job(stack, words, tmp_path, 2, "10.77.0.1", before)
        if cut:
            until(lambda: (tmp_path / "run" / "rounds" / "001" / "reconstructions").exists())
            command("ip", "-n", names[0], "link", "set", ends[0], "down")
        for host in hosts:
            assert host.end(90) == (2 if cut else 0), host.said
            if cut:
                assert one_sentence(host.said.splitlines()[-1], ["all processes of the job to go on"])
    if cut:
        with Host(words, tmp_path / "log") as again:
            assert again.end() == 0, again.said
    assert close(alone, tmp_path)
