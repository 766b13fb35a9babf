"""A U-Net of one's own, made of emfast's building blocks, as the network of a Denoiser.

Run it with `python examples/own_network.py`.
"""

import torch
from torch import Tensor, nn

import emfast
from emfast.diffusion import Denoiser, VPSchedule
from emfast.operators import Mask
from emfast.samplers import MMPS


class Block(nn.Module):
    """A residual block: the shortcut and the residual go into the last convolution."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.before, self.between = emfast.nn.GroupNormSiLU(8, inputs), emfast.nn.GroupNormSiLU(8, channels)
        self.first, self.last = nn.Conv2d(inputs, channels, 3), nn.Conv2d(channels, channels, 3)
        self.shortcut, self.time = nn.Conv2d(inputs, channels, 1), nn.Linear(64, channels)

    def forward(self, x: Tensor | tuple[Tensor, Tensor], embedding: Tensor) -> Tensor:
        h = self.before(x)
        h = emfast.nn.convolution(h, self.first.weight, self.first.bias, padding=1, training=self.training)
        h = self.between(h, self.time(embedding))
        shortcut = emfast.nn.Shortcut(x, self.shortcut.weight, self.shortcut.bias)
        options = {"residual": shortcut, "padding": 1, "training": self.training}
        return emfast.nn.convolution(h, self.last.weight, self.last.bias, **options)


class Network(nn.Module):
    """Two resolutions, with attention at the lower one. The skip connection is never concatenated."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(1, 64), nn.SiLU(), nn.Linear(64, 64))
        self.start, self.down = nn.Conv2d(1, channels, 3, padding=1), Block(channels, channels)
        self.middle, self.attention = Block(channels, channels), emfast.nn.SelfAttention2d(channels, heads=4, groups=8)
        self.up, self.end = Block(2 * channels, channels), nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        embedding = self.embed(time[:, None] / 1000)
        skip = self.down(self.start(x), embedding)
        h = self.attention(self.middle(nn.functional.avg_pool2d(skip, 2), embedding))
        return self.end(self.up((nn.functional.interpolate(h, scale_factor=2.0), skip), embedding))


def main(count: int = 4, steps: int = 20) -> Tensor:
    """Returns reconstructions of masked noise by a network that was never trained."""
    torch.manual_seed(0)
    denoiser = Denoiser(Network().eval(), VPSchedule.linear())
    operator = Mask(missing=0.5)
    images = torch.rand(count, 1, 16, 16) * 2 - 1
    ids = torch.arange(count)
    y = operator.apply(images, operator.parameters(ids, images.shape[1:]))
    return MMPS(steps=steps)(denoiser, y, operator, sigma=0.01, ids=ids)


if __name__ == "__main__":
    print("reconstructions:", tuple(main().shape))
