"""Large images by tiles: what is blended, without seams, and with the memory of a few tiles."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from emfast.diffusion import Denoiser, VPSchedule
from emfast.diffusion.tiled import TiledDenoiser, starts
from emfast.operators import Mask
from emfast.samplers import MMPS


class Local(nn.Module):
    """A network that sees 3 x 3 pixels, and zeros beyond the border."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)
        self.seen = []

    def forward(self, x, t):
        self.seen.append(tuple(x.shape))
        return self.convolution(x)


def denoiser():
    return Denoiser(Local(), VPSchedule.linear())


@pytest.mark.parametrize(
    ("side", "tile", "overlap"), [(64, 16, 4), (65, 16, 4), (16, 16, 4), (17, 16, 0), (50, 16, 15)]
)
def test_tiles_cover_a_side(side, tile, overlap):
    found = starts(side, tile, overlap)
    assert found[0] == 0
    assert found[-1] + tile == side
    assert all(b - a <= tile - overlap and b > a for a, b in pairwise(found))


@pytest.mark.parametrize("shape", [(40, 40), (37, 61), (16, 30)])
def test_away_from_the_borders_of_tiles_nothing_changes(shape):
    """A pixel that every tile which holds it sees whole is what it would be without tiles."""
    whole, x = denoiser(), torch.randn(2, 1, *shape)
    tiled = TiledDenoiser(whole, 16, overlap=6)
    inside = torch.ones(shape, dtype=torch.bool)
    for axis, side in enumerate(shape):
        ends = {end for start in starts(side, 16, 6) for end in (start, start + 15)} - {0, side - 1}
        inside.index_fill_(axis, torch.tensor(sorted(ends), dtype=torch.long), False)
    difference = (tiled(x, 500) - whole(x, 500))[..., inside].abs().max()
    assert difference < 1e-5
    assert {size[-2:] for size in tiled.network.seen[:-1]} == {(16, 16)}


def test_gradients_are_those_of_the_blend():
    plain, x = denoiser(), torch.randn(1, 1, 24, 24, dtype=torch.float64)
    tiled = TiledDenoiser(Denoiser(plain.network.double(), plain.schedule), 16, batch=2)
    assert torch.autograd.gradcheck(lambda x: tiled(x, 300), x.requires_grad_(), fast_mode=True)


def test_a_sampler_restores_a_large_image():
    tiled = TiledDenoiser(denoiser(), 16, batch=3)
    y, operator = torch.rand(1, 1, 40, 50), Mask(missing=0.3)
    x = MMPS(steps=3, iterations=1)(tiled, y, operator)
    assert x.shape == y.shape
    assert max(size[0] for size in tiled.network.seen) == 3


def test_tiles_have_the_labels_of_their_images():
    class Scaled(Local):
        def forward(self, x, t, labels):
            return super().forward(x, t) * labels.reshape(-1, 1, 1, 1)

    plain = Denoiser(Scaled(), VPSchedule.linear(), labels=torch.tensor([1, 2]))
    tiled, x = TiledDenoiser(plain, 16, batch=3).eval(), torch.randn(2, 1, 24, 40)
    both = tiled(x, 300)
    for row, label in enumerate((1, 2)):
        alone = tiled.labelled(label)
        assert isinstance(alone, TiledDenoiser)
        assert (alone.tile, alone.batch, alone.training) == (16, 3, False)
        torch.testing.assert_close(alone(x[row : row + 1], 300)[0], both[row])
    assert tiled.labels.tolist() == plain.labels.tolist() == [1, 2]
    with pytest.raises(ValueError, match="labels to be one for each of 3 images"):
        tiled(torch.randn(3, 1, 24, 40), 300)


@pytest.mark.parametrize("wrong", [{"tile": 1}, {"tile": 8, "overlap": 8}, {"tile": 8, "batch": 0}])
def test_what_is_refused(wrong):
    with pytest.raises(ValueError, match="TiledDenoiser: expected"):
        TiledDenoiser(denoiser(), **wrong)


class Halving(Local):
    """A network that halves its images so many times, and joins what it doubles with what was there."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def forward(self, x, t, times=None):
        times = self.times if times is None else times
        if times == 0:
            return self.convolution(x)
        inner = self(nn.functional.avg_pool2d(x, 2, ceil_mode=True), t, times - 1)
        return x + nn.functional.interpolate(inner, scale_factor=2)


@pytest.mark.parametrize(
    ("times", "tile", "words"),
    [(2, 18, "multiple of 4, .* got 18. Take 16 or 20[.]$"), (3, 5, "multiple of 8, .* got 5. Take 8[.]$")],
)
def test_a_tile_that_the_network_cannot_halve(times, tile, words):
    tiled = TiledDenoiser(Denoiser(Halving(times), VPSchedule.linear()), tile)
    with pytest.raises(ValueError, match=f"^TiledDenoiser: expected tile to be a {words}"):
        tiled(torch.zeros(2, 1, 32, 32), 300)
    with pytest.raises(ValueError, match=f"^TiledDenoiser: expected tile to be a {words}"):
        MMPS(steps=2)(tiled, torch.zeros(2, 1, 32, 32), Mask(0.5), sigma=0.1)
    good = TiledDenoiser(tiled, 16)
    assert good(torch.zeros(2, 1, 32, 32), 300).shape == (2, 1, 32, 32)
