"""The processes that share a run: one, or those of `accelerate launch`, torchrun or Slurm."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor

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

    def average(self, tensors: list[Tensor]) -> None:
        """Replaces tensors, on one device and of one dtype, by their means over the processes, in place."""
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])  # one message
        torch.distributed.all_reduce(flat)
        parts = flat.div_(self.world).split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])


def is_main() -> bool:
    """Returns whether this process is the first, or the only one, of those that a launcher started."""
    return int(os.environ.get("WORLD_SIZE", 1)) == 1 or int(os.environ.get("RANK", 0)) == 0


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
