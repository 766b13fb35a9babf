"""The blocks of guided-diffusion's U-Net, which DPS uses too: residual, attention and resampling."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from emfast.adapters.parts import Part, itself, norm, original_class, square
from emfast.adapters.swap import Swapped, features, precision
from emfast.nn.attention import attend
from emfast.nn.convolution import Shortcut, bias_for_normalisation, convolution
from emfast.nn.layout import cast
from emfast.nn.normalisation import normalised, normalised_and_input

NORMS = ("GroupNorm32", nn.GroupNorm)
POINTWISE = {"kernel_size": (1,), "stride": (1,), "padding": (0,), "groups": 1}


class ResBlock(Swapped):
    """guided-diffusion's ResBlock: normalisations with SiLU and time embedding, the residual in the last convolution.

    The input may be a pair, the features and their skip connection, read as if concatenated over channels.
    """

    def parts(self: Any) -> list[Part]:
        """Those whose parameters are read. Dropout and the layers of the embedding are called."""
        skip, found = self.skip_connection, []
        for name, layers in (("in_layers", self.in_layers), ("out_layers", self.out_layers)):
            first, activation, last = layers if name == "in_layers" else _without_dropout(*layers)
            found += [Part(name, layers, (nn.Sequential,)), norm(f"{name}.0", first, *NORMS)]
            found += [Part(f"{name}.1", activation, ("SiLU",)), square(f"{name}.{len(layers) - 1}", last, 3)]
        if isinstance(skip, nn.Identity):
            found.append(Part("skip_connection", skip, (nn.Identity,)))
        else:
            found.append(square("skip_connection", skip, 3 if skip.kernel_size == (3, 3) else 1))
        if self.updown:
            kind = original_class(self.x_upd).__name__
            known = {"use_conv": False, "dims": 2}
            for name, part in (("h_upd", self.h_upd), ("x_upd", self.x_upd)):
                found.append(Part(name, part, (kind,) if kind in ("Upsample", "Downsample") else (), known))
                if kind == "Downsample":
                    found.append(Part(f"{name}.op", part.op, (nn.AvgPool2d,), {"kernel_size": 2, "stride": 2}))
        return found

    def example(self: Any) -> tuple[Any, ...]:
        """Features, and the embedding of the time."""
        weight = self.in_layers[2].weight
        return features(weight, self.channels, 8, 8), features(weight, self.emb_channels)

    def accelerated(self: Any, x: Tensor | tuple[Tensor, Tensor], emb: Tensor) -> Tensor:
        """As guided-diffusion's."""
        xs = x if isinstance(x, tuple) else (x,)
        if self.use_checkpoint and torch.is_grad_enabled():
            random = self.out_layers[2].training  # no graph can hold what keeps the generator's state
            y: Tensor = checkpoint(_residual, self, emb, *xs, use_reentrant=False, preserve_rng_state=random)
            return y
        return _residual(self, emb, *xs)


def _without_dropout(first: Any, activation: Any, _: Any, last: Any) -> tuple[Any, Any, Any]:
    return first, activation, last


def _residual(block: Any, emb: Tensor, *inputs: Tensor) -> Tensor:
    settings = block.settings()
    dtype = precision(settings, inputs[0])
    xs = tuple(cast(x, dtype) for x in inputs)
    first, last = block.in_layers[2], block.out_layers[3]
    h, kept = normalised_and_input(block.in_layers[0], _pair(xs))
    xs = kept if isinstance(kept, tuple) else (kept,)
    up = block.updown and original_class(block.h_upd).__name__ == "Upsample"
    if block.updown:
        x = joined(xs)
        xs = (F.interpolate(x, scale_factor=2.0) if up else F.avg_pool2d(x, 2),)
        h = h if up else F.avg_pool2d(h, 2)
    options: dict[str, Any] = {"padding": 1, "dtype": dtype, "training": block.training}
    bias, shift = bias_for_normalisation(first.bias, h)
    h = convolution(h, first.weight, bias, upsample=up, **options)
    h = normalised(block.out_layers[0], h, block.emb_layers(emb), bias=shift, scaled=block.use_scale_shift_norm)
    h = block.out_layers[2](h)  # dropout
    skip = block.skip_connection
    residual = joined(xs) if isinstance(skip, nn.Identity) else Shortcut(xs, skip.weight, skip.bias, skip.padding[0])
    y = convolution(h, last.weight, last.bias, residual=residual, **options)
    return y.to(inputs[0].dtype) if settings.dtype else y


def _pair(xs: tuple[Tensor, ...]) -> Any:
    return xs[0] if len(xs) == 1 else xs


def joined(xs: tuple[Tensor, ...]) -> Tensor:
    """Returns one tensor of one or two."""
    return xs[0] if len(xs) == 1 else torch.cat(xs, 1)


class AttentionBlock(Swapped):
    """guided-diffusion's AttentionBlock on an image, in both orders of heads and projections."""

    def parts(self: Any) -> list[Part]:
        """All of it."""
        found = [Part(name, getattr(self, name), (nn.Conv1d,), POINTWISE) for name in ("qkv", "proj_out")]
        found.append(Part("attention", self.attention, ("QKVAttention", "QKVAttentionLegacy")))
        return [*found, norm("norm", self.norm, *NORMS)]

    def example(self: Any) -> tuple[Any, ...]:
        """An image."""
        return (features(self.qkv.weight, self.channels, 4, 4),)

    def accelerated(self: Any, x: Tensor) -> Any:
        """As guided-diffusion's."""
        if x.dim() != 4:
            return NotImplemented
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(_attention, self, x, use_reentrant=False, preserve_rng_state=False)
        return _attention(self, x)  # attention's own backward recomputes: the original's checkpoint saves no more


def _attention(block: Any, image: Tensor) -> Tensor:
    settings = block.settings()
    dtype = precision(settings, image)
    h, x = normalised_and_input(block.norm, cast(image, dtype), silu=False)
    qkv = convolution(h, block.qkv.weight, block.qkv.bias, dtype=dtype, training=block.training)
    order = "h3d" if type(block.attention).__name__ == "QKVAttentionLegacy" else "3hd"
    h = attend(qkv, block.attention.n_heads, order)
    y = convolution(h, block.proj_out.weight, block.proj_out.bias, residual=x, dtype=dtype, training=block.training)
    return y.to(image.dtype) if settings.dtype else y


class Upsample(Swapped):
    """guided-diffusion's Upsample with a convolution, on the small image."""

    def parts(self: Any) -> list[Part]:
        """The convolution, and itself."""
        return [itself(self, use_conv=True, dims=2), square("conv", self.conv, 3)]

    def example(self: Any) -> tuple[Any, ...]:
        """An image."""
        return (features(self.conv.weight, self.channels, 4, 4),)

    def accelerated(self: Any, x: Tensor) -> Tensor:
        """As guided-diffusion's."""
        options: dict[str, Any] = {"dtype": precision(self.settings(), x), "training": self.training}
        y = convolution(x, self.conv.weight, self.conv.bias, padding=1, upsample=True, **options)
        return y.to(x.dtype) if self.settings().dtype else y


class Downsample(Swapped):
    """guided-diffusion's Downsample with a convolution of stride 2."""

    def parts(self: Any) -> list[Part]:
        """The convolution."""
        return [square("op", self.op, 3, 2, 1)]

    def example(self: Any) -> tuple[Any, ...]:
        """An image."""
        return (features(self.op.weight, self.channels, 8, 8),)

    def accelerated(self: Any, x: Tensor) -> Tensor:
        """As guided-diffusion's."""
        options: dict[str, Any] = {"dtype": precision(self.settings(), x), "training": self.training}
        y = convolution(x, self.op.weight, self.op.bias, stride=2, padding=1, **options)
        return y.to(x.dtype) if self.settings().dtype else y
