"""The rounds of a run as TensorBoard events."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from emfast._check import message
from emfast._files import read_tensors
from emfast.reporting import PREVIEW, to_grid

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SCALARS = ("psnr", "ssim", "misfit", "fd", "scale", "network_evaluations", "seconds_e_step", "seconds_m_step")


class TensorBoard:
    """Writes scalars and pictures of every round; the events appear with the first round.

    Arguments:
        run: The folder of the run; the events go to `tensorboard/` in it.
    Raises:
        ImportError: If TensorBoard is not installed.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run / "tensorboard"
        self.writer: SummaryWriter | None = None
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            fix = "Install it with `pip install emfast[tensorboard]`, or leave tensorboard false"
            raise ImportError(message("train", "the package tensorboard", "to be installed", "none", fix)) from error

    def write(self, row: dict[str, Any], folder: Path) -> None:
        """Writes a finished round.

        Arguments:
            row: Its metrics.
            folder: `rounds/NNN`, with its preview.
        """
        from torch.utils.tensorboard import SummaryWriter

        # Not before the run has claimed its folder: a refused run must leave nothing behind.
        writer = self.writer = self.writer or SummaryWriter(self.folder)
        for name in SCALARS:
            if row.get(name) is not None:
                writer.add_scalar(name, row[name], row["round"])
        for name, images in read_tensors(folder / PREVIEW).items():
            if images.ndim == 4 and len(images) > 0:
                writer.add_image(name, to_grid(images, 8), row["round"], dataformats="HWC")
        writer.flush()
