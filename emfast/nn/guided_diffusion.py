"""The modules of guided-diffusion's U-Net, which DPS uses too: residual, attention and resampling blocks, the whole."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from emfast.nn.attention import attend
from emfast.nn.conditional import forked, normalised
from emfast.nn.convolution import Shortcut, convolution
from emfast.nn.gpu import later
from emfast.nn.packed import cast
from emfast.nn.swap import Swapped, is_hooked, is_plain, precision


class ResBlock(Swapped):
    """guided-diffusion's ResBlock: normalisations with SiLU and time embedding, the residual in the last convolution.

    The input may be a pair, the features and their skip connection, read as if concatenated over channels.
    """

    def forward(self: Any, x: Tensor | tuple[Tensor, Tensor], emb: Tensor) -> Tensor:
        xs = x if isinstance(x, tuple) else (x,)
        if not _is_residual(self):
            return super().forward(_joined(xs), emb)  # type: ignore[misc]
        if self.use_checkpoint and torch.is_grad_enabled():
            random = self.out_layers[2].training  # no graph can hold what keeps the generator's state
            y: Tensor = checkpoint(_residual, self, emb, *xs, use_reentrant=False, preserve_rng_state=random)
            return y
        return _residual(self, emb, *xs)


def _residual(block: Any, emb: Tensor, *inputs: Tensor) -> Tensor:
    settings = block.settings()
    dtype = precision(settings, inputs[0])
    xs = tuple(cast(x, dtype) for x in inputs)
    first, last = block.in_layers[2], block.out_layers[3]
    h, features = forked(block.in_layers[0], _pair(xs))
    xs = features if isinstance(features, tuple) else (features,)
    up = block.updown and type(block.h_upd).__name__ == "Upsample"
    if block.updown:
        x = _joined(xs)
        xs = (F.interpolate(x, scale_factor=2.0) if up else F.avg_pool2d(x, 2),)
        h = h if up else F.avg_pool2d(h, 2)
    options: dict[str, Any] = {"padding": 1, "dtype": dtype, "training": block.training}
    bias, shift = later(first.bias, h)
    h = convolution(h, first.weight, bias, upsample=up, **options)
    h = normalised(block.out_layers[0], h, block.emb_layers(emb), bias=shift, scaled=block.use_scale_shift_norm)
    h = block.out_layers[2](h)  # dropout
    skip = block.skip_connection
    residual = _joined(xs) if isinstance(skip, nn.Identity) else Shortcut(xs, skip.weight, skip.bias, skip.padding[0])
    y = convolution(h, last.weight, last.bias, residual=residual, **options)
    return y.to(inputs[0].dtype) if settings.dtype else y


class AttentionBlock(Swapped):
    """guided-diffusion's AttentionBlock on an image, in both orders of heads and projections."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if x.dim() != 4 or not _is_attention(self):
            return super().forward(x)  # type: ignore[misc]
        if self.use_checkpoint and torch.is_grad_enabled():
            y: Tensor = checkpoint(_attention, self, x, use_reentrant=False, preserve_rng_state=False)
            return y
        return _attention(self, x)  # attention's own backward recomputes: the original's checkpoint saves no more


def _attention(block: Any, features: Tensor) -> Tensor:
    settings = block.settings()
    dtype = precision(settings, features)
    h, x = forked(block.norm, cast(features, dtype), silu=False)
    qkv = convolution(h, block.qkv.weight, block.qkv.bias, dtype=dtype, training=block.training)
    order = "h3d" if type(block.attention).__name__ == "QKVAttentionLegacy" else "3hd"
    h = attend(qkv, block.attention.n_heads, order)
    y = convolution(h, block.proj_out.weight, block.proj_out.bias, residual=x, dtype=dtype, training=block.training)
    return y.to(features.dtype) if settings.dtype else y


class Upsample(Swapped):
    """guided-diffusion's Upsample with a convolution, on the small image."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if not is_plain(self.conv, nn.Conv2d):
            return super().forward(x)  # type: ignore[misc]
        dtype = precision(self.settings(), x)
        y = convolution(
            x, self.conv.weight, self.conv.bias, padding=1, upsample=True, dtype=dtype, training=self.training
        )
        return y.to(x.dtype) if self.settings().dtype else y


class Downsample(Swapped):
    """guided-diffusion's Downsample with a convolution of stride 2."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if not is_plain(self.op, nn.Conv2d):
            return super().forward(x)  # type: ignore[misc]
        dtype = precision(self.settings(), x)
        y = convolution(x, self.op.weight, self.op.bias, stride=2, padding=1, dtype=dtype, training=self.training)
        return y.to(x.dtype) if self.settings().dtype else y


class UNet(Swapped):
    """guided-diffusion's UNetModel: the skip connections go to the residual blocks as they are."""

    hands_on = True

    def forward(self: Any, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        if (y is None) != (self.num_classes is None):
            return super().forward(x, timesteps, y)  # type: ignore[misc]
        emb = self.time_embed(sinusoids(timesteps, self.model_channels))
        if y is not None:
            emb = emb + self.label_emb(y)
        settings = self.settings()
        keeps = settings.entry and settings.dtype is not None  # the layers at both ends cast, once
        h = x if keeps else x.type(self.dtype)
        skips = []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            skip = skips.pop()
            h = block((h, skip) if _takes_pairs(block) else torch.cat((h, skip), 1), emb)
        out: Tensor = self.out(h if keeps else h.type(x.dtype))
        return out


def sinusoids(timesteps: Tensor, size: int, longest: float = 10000.0) -> Tensor:
    """Returns cosines, then sines, of the times at frequencies from 1 to nearly 1 / longest, (B, size), in float32.

    Arguments:
        timesteps: (B,) times.
        size: The size of the embedding; the last of an odd one is zero.
        longest: The longest wavelength, over 2 pi.
    """
    half = size // 2
    exponents = -math.log(longest) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps[:, None].float() * exponents.exp()
    return F.pad(torch.cat((angles.cos(), angles.sin()), 1), (0, size % 2))


def _takes_pairs(block: Any) -> bool:
    """Returns whether a TimestepEmbedSequential hands its input on, as it is, to an accelerated residual block."""
    return not is_hooked(block) and isinstance(block[0], ResBlock) and not is_hooked(block[0])


def _is_residual(block: Any) -> bool:
    """Returns whether the parts are as they were made: not wrapped, replaced or observed since."""
    layers, outs, skip = block.in_layers, block.out_layers, block.skip_connection
    if not (is_plain(layers, nn.Sequential) and is_plain(outs, nn.Sequential) and len(layers) == 3 and len(outs) == 4):
        return False
    norms = _is_norm(layers[0]) and _is_norm(outs[0])
    convolutions = is_plain(layers[2], nn.Conv2d) and is_plain(outs[3], nn.Conv2d)
    known = is_plain(skip, nn.Identity) or is_plain(skip, nn.Conv2d)
    return norms and convolutions and known and _is_silu(layers[1]) and _is_silu(outs[1])


def _is_attention(block: Any) -> bool:
    convolutions = is_plain(block.qkv, nn.Conv1d) and is_plain(block.proj_out, nn.Conv1d)
    return convolutions and _is_norm(block.norm) and not is_hooked(block.attention)


def _is_norm(module: Any) -> bool:
    return type(module).__name__ in ("GroupNorm32", "GroupNorm") and not is_hooked(module)


def _is_silu(module: Any) -> bool:
    return type(module).__name__ == "SiLU" and not is_hooked(module)


def _pair(xs: tuple[Tensor, ...]) -> Any:
    return xs[0] if len(xs) == 1 else xs


def _joined(xs: tuple[Tensor, ...]) -> Tensor:
    return xs[0] if len(xs) == 1 else torch.cat(xs, 1)
