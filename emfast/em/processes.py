"""The processes that share a run: one, or those of `accelerate launch`, torchrun or Slurm."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import nn

# NCCL ends a process after 10 minutes in a barrier; there it may wait for all that another one has to sample.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """This process's place among those that work together; alone by default.

    Arguments:
        rank: Its number.
        world: How many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes what only one may write."""
        return self.rank == 0

    def wait(self) -> None:
        """Waits for the others."""
        if self.world > 1:
            torch.distributed.barrier()

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Returns the network with its gradients averaged over the processes."""
        if self.world == 1:
            return network
        ids = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=ids)


def join(device: torch.device) -> Processes:
    """Returns the processes a launcher started, joined into a group; this one alone if none did.

    Arguments:
        device: The device of this process: its type decides the communication backend.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
    return Processes(state.process_index, state.num_processes)
