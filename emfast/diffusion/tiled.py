"""Large images, denoised by overlapping tiles of the size that a network was trained on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from emfast._check import check, message
from emfast._library import first_order
from emfast.diffusion.denoiser import Denoiser

MULTIPLES = (2, 4, 8, 16, 32, 64)  # that the sides of images may have to be, for a network that halves them
REFUSALS = (RuntimeError, TypeError, ValueError, IndexError)  # what a network raises for images it does not take


class TiledDenoiser(Denoiser):
    r"""A denoiser whose network sees tiles of an image; what it says of them is blended where they overlap.

    A sampler goes on to see one image, with one noise and one observation: tiles agree in every step, and leave no
    seams. With weights that fall off towards the border of each tile:

    .. math:: \epsilon(x) = \sum_k w_k \epsilon_k(x) / \sum_k w_k

    Arguments:
        denoiser: The denoiser, ready to use.
        tile: The side of the tiles in pixels, that of the images of its training.
        overlap: By how many pixels neighbours overlap, at least; a quarter of a tile by default.
        batch: Tiles that the network is given together.

    References:
        | MultiDiffusion: Fusing Diffusion Paths for Controlled Image Generation (Bar-Tal et al., 2023),
        | arXiv 2302.08113
    """

    def __init__(self, denoiser: Denoiser, tile: int, overlap: int | None = None, batch: int = 32) -> None:
        super().__init__(
            denoiser.network,
            denoiser.schedule,
            denoiser.prediction,
            denoiser.dtype,
            sigma_data=denoiser.sigma_data,
            labels=denoiser.labels,
            time_table=denoiser.time_table,
            multiple=denoiser.multiple,
            condition=denoiser.condition,
        )
        overlap = tile // 4 if overlap is None else overlap
        check(tile > 1, "TiledDenoiser", "tile", "to be > 1", tile)
        check(0 <= overlap < tile, "TiledDenoiser", "overlap", f"to be in 0 ... {tile - 1}", overlap)
        check(batch > 0, "TiledDenoiser", "batch", "to be positive", batch)
        self.tile, self.overlap, self.batch = tile, overlap, batch
        self.train(denoiser.training)

    def raw(self, x: Tensor, time: Tensor, condition: Tensor | None = None, *, tiles: int = 1) -> Tensor:
        """Returns the blended output of the network, (B, C, H, W), in the dtype of x."""
        height, width = (min(self.tile, side) for side in x.shape[-2:])
        rows, columns = (starts(side, self.tile, self.overlap) for side in x.shape[-2:])
        places = [(top, left) for top in rows for left in columns]
        window = _ramp(height, self.overlap, x)[:, None] * _ramp(width, self.overlap, x)
        cuts = [(..., slice(top, top + height), slice(left, left + width)) for top, left in places]
        weight = torch.zeros_like(x[0, 0])
        for cut in cuts:
            weight[cut] += window
        shown = () if condition is None else (condition,)
        blended = (x, time.expand(len(x)), cuts, window / weight.max(), self.batch, *shown)
        try:
            output: Tensor = _Blend.apply(super().raw, *blended)
        except REFUSALS as error:
            if not isinstance(error, torch.OutOfMemoryError) and max(height, width) == self.tile:
                self._explain(error, x, time)
            raise
        return output / (weight / weight.max())

    @torch.no_grad()
    def _explain(self, error: Exception, x: Tensor, time: Tensor) -> None:
        """Raises a sentence if an error is of the side of the tiles, which the network cannot halve so often.

        Nothing is asked of the network but other tiles: of this side, and of odd multiples of 2, 4, ...

        Arguments:
            error: What the network raised.
            x: (B, C, H, W) what it was given, in tiles.
            time: (B,) times, as the network takes them.
        """

        def takes(side: int) -> bool:
            try:
                super(TiledDenoiser, self).raw(x.new_zeros(*x.shape[:2], side, side), time.expand(len(x)))
            except REFUSALS:
                return False
            return True

        if takes(self.tile):
            return
        for multiple in MULTIPLES:
            below = self.tile // multiple * multiple
            if self.tile % multiple and takes((self.tile // multiple | 1) * multiple):
                sizes = " or ".join(str(side) for side in (below, below + multiple) if side > 1)
                requirement = f"to be a multiple of {multiple}, for the network halves its images"
                sentence = message("TiledDenoiser", "tile", requirement, self.tile, f"Take {sizes}")
                raise ValueError(sentence) from error


class _Blend(torch.autograd.Function):
    """The weighted sum of what a network says of tiles, computed again for each gradient, a few tiles at a time.

    What all tiles keep for a gradient would not fit into memory, nor would an image for each of them. Only the image
    gets a gradient; samplers freeze the weights.
    """

    @staticmethod
    def forward(ctx: Any, raw: Callable[..., Tensor], x: Tensor, times: Tensor, *rest: Any) -> Tensor:
        cuts, window, batch, *shown = rest
        ctx.raw, ctx.rest = raw, rest[:3]
        ctx.save_for_backward(x, times, *shown)
        total = torch.zeros_like(x)
        for part in (cuts[k : k + batch] for k in range(0, len(cuts), batch)):
            tiles = (torch.cat([images[cut] for cut in part]) for images in shown)
            outputs = raw(torch.cat([x[cut] for cut in part]), times.repeat(len(part)), *tiles, tiles=len(part))
            for cut, output in zip(part, outputs.split(len(x)), strict=True):
                total[cut] += window * output
        return total

    @staticmethod
    @partial(first_order, "TiledDenoiser")
    def backward(ctx: Any, saved: tuple[Tensor, ...], gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, times, *shown), (cuts, window, batch) = saved, ctx.rest
        total = torch.zeros_like(x)
        for part in (cuts[k : k + batch] for k in range(0, len(cuts), batch)):
            tiles = torch.cat([x[cut] for cut in part]).detach().requires_grad_()
            with torch.enable_grad():
                others = (torch.cat([images[cut] for cut in part]) for images in shown)
                outputs = ctx.raw(tiles, times.repeat(len(part)), *others, tiles=len(part))
            (each,) = torch.autograd.grad(outputs, tiles, torch.cat([window * gradient[cut] for cut in part]))
            for cut, own in zip(part, each.split(len(x)), strict=True):
                total[cut] += own
        return None, total, None, None, None, None, *(None for _ in shown)


def starts(side: int, tile: int, overlap: int) -> list[int]:
    """Returns where the tiles of a side begin: evenly spaced, the last one at the end, with at least this overlap.

    Arguments:
        side: Pixels of the side.
        tile: Pixels of a tile.
        overlap: Pixels that neighbours share, at least.
    """
    count = max(1, -(-(side - overlap) // (tile - overlap)))
    return [round(k * (side - tile) / max(1, count - 1)) for k in range(count)] if side > tile else [0]


def _ramp(side: int, overlap: int, like: Tensor) -> Tensor:
    """The weights along a side: they rise over the overlap, and fall again."""
    place = torch.arange(1, side + 1, device=like.device, dtype=like.dtype)
    return torch.minimum(place, place.flip(0)).clamp(max=overlap + 1) / (overlap + 1)
