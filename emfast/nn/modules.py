"""Building blocks for networks of one's own, faster than what torch has of them, on CPUs and on GPUs."""

from typing import Any

from torch import Tensor, nn

from emfast.nn.attention import attend
from emfast.nn.convolution import convolution
from emfast.nn.normalisation import normalised, normalised_and_input


class GroupNormSiLU(nn.GroupNorm):
    r"""Group normalisation followed by SiLU, in one read and one write; parameters as of torch.nn.GroupNorm.

    .. math:: \mathrm{silu}(n (1 + s) + t), \quad n = \mathrm{GroupNorm}(x + e)

    Arguments:
        num_groups: The number of groups.
        num_channels: C.
        eps: Added to the variance.
        scaled: Whether the embedding scales and shifts after the normalisation (s, t); else it is added before it (e).
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, *, scaled: bool = False) -> None:
        super().__init__(num_groups, num_channels, eps)
        self.scaled = scaled

    def forward(self, x: Any, embedding: Tensor | None = None) -> Tensor:
        """Returns the activations, of the shape, dtype and memory format of x.

        Arguments:
            x: (B, C, H, W), or two tensors that are read as their concatenation over channels, which is never written.
            embedding: e, (B, C), or s and t, (B, 2 C), of the time; None for none.
        """
        return normalised(self, x, embedding, scaled=self.scaled)


class SelfAttention2d(nn.Module):
    r"""Self-attention of the pixels of an image with its residual: no copy is made between image and tokens.

    .. math:: x + W_o \, \mathrm{attention}(W_{qkv} \, \mathrm{GroupNorm}(x))

    Arguments:
        channels: C, a multiple of heads and groups.
        heads: The number of heads.
        groups: The number of groups of the normalisation.
    """

    def __init__(self, channels: int, heads: int = 1, groups: int = 32) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the result, channels_last.

        Arguments:
            x: (B, C, H, W).
        """
        h, x = normalised_and_input(self.norm, x, silu=False)
        h = attend(convolution(h, self.qkv.weight, self.qkv.bias, training=self.training), self.heads)
        return convolution(h, self.out.weight, self.out.bias, residual=x, training=self.training)
