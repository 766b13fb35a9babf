"""What a run says of the E-step that is going on, for processes that join it: `e_step.json` in its folder.

Where the model is that of a moment of the training, its weights lie in the folder of the round.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from emfast._files import read_tensors_and_metadata, write_tensors
from emfast._records import read_record, write_record

NAME = "e_step.json"
WEIGHTS = "moment.safetensors"


@dataclass(frozen=True)
class Announcement:
    """An E-step.

    Arguments:
        round: The round whose reconstructions are made.
        phase: "warm" or "final".
        batch_size: Observations reconstructed together.
        precision: What the network computes in, "float32" or "bfloat16": it may be another one by default elsewhere.
        first, stop: Which shards are made, stop not among them; None: to the last one.
        step: The training steps after which the model is, where it is that of a moment and not of a finished round.
    """

    round: int
    phase: str
    batch_size: int
    precision: str
    first: int = 0
    stop: int | None = None
    step: int | None = None

    def write(self, run: Path) -> None:
        """Says it in the folder of a run."""
        write_record(run / NAME, dataclasses.asdict(self))

    @classmethod
    def read(cls, run: Path) -> Announcement | None:
        """Returns what the folder of a run says; None if it has said nothing yet.

        Raises:
            ValueError: If the file is damaged; it is named.
        """
        try:
            record = read_record(run / NAME, round=int, phase=str, batch_size=int, precision=str)
        except FileNotFoundError:
            return None
        return cls(**{field.name: record[field.name] for field in dataclasses.fields(cls) if field.name in record})


def write_weights(folder: Path, network: nn.Module, step: int) -> None:
    """Writes the weights of a moment.

    Arguments:
        folder: That of the round.
        network: The network.
        step: The training steps that it has had.
    """
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    write_tensors(folder / WEIGHTS, tensors, {"step": str(step)})


@torch.no_grad()
def read_weights(folder: Path, network: nn.Module) -> int:
    """Gives the weights of the last moment that was written to a network; returns its training steps.

    Arguments:
        folder: That of the round.
        network: The network, which is changed.
    Raises:
        FileNotFoundError: If there are none any more.
        ValueError: If the file is damaged; it is named.
    """
    tensors, metadata = read_tensors_and_metadata(folder / WEIGHTS)
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        tensor.copy_(tensors[name])
    return int(metadata["step"])
