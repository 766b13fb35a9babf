"""The modules of EDM's U-Nets: the block, and the convolutions and normalisations outside of blocks."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from emfast.adapters.parts import Part, original_class
from emfast.adapters.swap import Swapped, features, precision
from emfast.nn.attention import attend
from emfast.nn.convolution import Shortcut, bias_for_normalisation, convolution
from emfast.nn.layout import cast
from emfast.nn.normalisation import normalised, normalised_and_input


class Block(Swapped):
    """EDM's UNetBlock: normalisations with SiLU and embedding, residuals in the last convolutions, attention.

    The input may be a pair, the features and their skip connection, read as if concatenated over channels.
    """

    def parts(self: Any) -> list[Part]:
        """All but the layer of the embedding, which is called."""
        norms, convolutions = ["norm0", "norm1"], ["conv0", "conv1"]
        convolutions += [] if self.skip is None else ["skip"]
        if self.num_heads:
            norms, convolutions = [*norms, "norm2"], [*convolutions, "qkv", "proj"]
        module = original_class(self).__module__
        found = [Part(name, getattr(self, name), (f"{module}:GroupNorm",)) for name in norms]
        found += [Part(name, getattr(self, name), (f"{module}:Conv2d",)) for name in convolutions]
        return found + [_as_it_resamples(name, getattr(self, name)) for name in convolutions]

    def example(self: Any) -> tuple[Any, ...]:
        """Features, and the embedding of the noise."""
        weight = self.conv0.weight
        return features(weight, self.in_channels, 8, 8), features(weight, self.affine.in_features)

    def accelerated(self: Any, x: Tensor | tuple[Tensor, Tensor], emb: Tensor) -> Tensor:
        """As EDM's."""
        xs = x if isinstance(x, tuple) else (x,)
        settings = self.settings()
        dtype = precision(settings, xs[0])
        options: dict[str, Any] = {"dtype": dtype, "training": self.training, "scale": float(self.skip_scale)}
        inputs: Any = tuple(cast(part, dtype) for part in xs)
        inputs = inputs if len(inputs) > 1 else inputs[0]
        _, shift = bias_for_normalisation(self.conv0.bias, xs[0])
        h, inputs = normalised_and_input(self.norm0, inputs)
        h = resampled(self.conv0, h, dtype, biased=shift is None)
        h = normalised(self.norm1, h, self.affine(emb), bias=shift, scaled=self.adaptive_scale)
        h = F.dropout(h, self.dropout, self.training)
        y = convolution(
            h, self.conv1.weight, self.conv1.bias, residual=_skipped(self, inputs, dtype), padding=1, **options
        )
        if self.num_heads:
            h, y = normalised_and_input(self.norm2, y, silu=False)
            qkv = convolution(  # channels without `interleaved`: (head, size, 3)
                h, self.qkv.weight, self.qkv.bias, interleaved=3, dtype=dtype, training=self.training
            )
            h = attend(qkv, self.num_heads)
            y = convolution(h, self.proj.weight, self.proj.bias, residual=y, **options)
        return y.to(xs[0].dtype) if settings.dtype else y


class Convolution(Swapped):
    """EDM's Conv2d, outside of blocks."""

    def parts(self: Any) -> list[Part]:
        """Itself."""
        return [_as_it_resamples("", self)]

    def example(self: Any) -> tuple[Any, ...]:
        """An image."""
        like = self.resample_filter if self.weight is None else self.weight
        return (features(like, self.in_channels, 8, 8),)

    def accelerated(self: Any, x: Tensor) -> Tensor:
        """As EDM's."""
        y = resampled(self, x, precision(self.settings(), x))
        return y.to(x.dtype) if self.settings().dtype else y


class Norm(Swapped):
    """EDM's GroupNorm, outside of blocks."""

    def example(self: Any) -> tuple[Any, ...]:
        """An image."""
        return (features(self.weight, self.weight.shape[0], 8, 8),)

    def accelerated(self: Any, x: Tensor) -> Tensor:
        """As EDM's."""
        return normalised(self, x, silu=False)


def _as_it_resamples(name: str, conv: Any) -> Part:
    """Returns a convolution whose way of resampling is known: a filter of two taps is a box, say."""
    if not (conv.up or conv.down):
        return Part(name, conv, (original_class(conv),), called=True)
    known: dict[str, Any] = {}
    if conv.up and conv.weight is not None:
        known["fused_resample"] = False
    taps = conv.resample_filter
    if taps.shape[-1] == 2 and bool((taps != 0.25).any()):
        raise ValueError(f"{name}.resample_filter is no box")
    return Part(name, conv, (original_class(conv),), known, called=True)


def _skipped(block: Any, inputs: Tensor | tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor | Shortcut:
    """Returns what the block adds to its last convolution."""
    skip = block.skip
    if skip is None:
        return joined(inputs)
    if skip.weight is None or skip.up or skip.down:
        return resampled(skip, inputs, dtype)
    return Shortcut(inputs, skip.weight, skip.bias, skip.weight.shape[-1] // 2)


def resampled(conv: Any, x: Tensor | tuple[Tensor, Tensor], dtype: torch.dtype, *, biased: bool = True) -> Tensor:
    """Returns what an EDM Conv2d does: resampling by its filter, convolution, or both.

    Arguments:
        conv: The module: weight (None for none), bias, up, down, resample_filter, fused_resample.
        x: The features; two tensors are read as their concatenation over channels.
        dtype: The precision.
        biased: Whether the bias is added: it is the same for all pixels, whatever the filter.
    """
    if conv.weight is None:
        return _filtered(conv, cast(joined(x), dtype))
    bias = conv.bias if biased else None
    padding = conv.weight.shape[-1] // 2
    options: dict[str, Any] = {"dtype": dtype, "padding": padding, "training": conv.training}
    if not (conv.up or conv.down):
        return convolution(x, conv.weight, bias, **options)
    x, size = joined(x), conv.resample_filter.shape[-1]
    if conv.down and conv.fused_resample:
        options["padding"] += (size - 1) // 2
        y = convolution(x, conv.weight, None, **options)
        y = F.conv2d(y, _depthwise(conv, y), groups=y.shape[1], stride=2)
        return y if bias is None else y + bias.to(y.dtype)[:, None, None]
    if conv.up and size == 2 and padding == 1:
        return convolution(x, conv.weight, bias, upsample=True, **options)
    if conv.up and size == 2 and padding == 0:  # a 1 x 1 convolution of copied pixels is the copy of its result
        return _filtered(conv, convolution(x, conv.weight, bias, **options))
    return convolution(_filtered(conv, cast(x, dtype)), conv.weight, bias, **options)


def _filtered(conv: Any, x: Tensor) -> Tensor:
    """Returns x resampled by two. The filter of size 2 is a box: copies of pixels, or their means."""
    if not (conv.up or conv.down):
        return x
    size = conv.resample_filter.shape[-1]
    if size == 2:
        return F.interpolate(x, scale_factor=2.0) if conv.up else F.avg_pool2d(x, 2)
    padding, kernel = (size - 1) // 2, _depthwise(conv, x)
    if conv.up:
        return F.conv_transpose2d(x, 4 * kernel, groups=x.shape[1], stride=2, padding=padding)
    return F.conv2d(x, kernel, groups=x.shape[1], stride=2, padding=padding)


def _depthwise(conv: Any, x: Tensor) -> Tensor:
    kernel: Tensor = conv.resample_filter.to(x.dtype)
    return kernel.tile(x.shape[1], 1, 1, 1)


def joined(x: Any) -> Tensor:
    """Returns one tensor of one or two."""
    if isinstance(x, Tensor):
        return x
    return x[0] if len(x) == 1 else torch.cat(x, 1)
