"""The gradients of convolutions' weights and biases, at the shapes of the U-Nets that are trained."""

from collections.abc import Iterator
from functools import partial

import torch
from convolutions import draw, source
from measure import Case
from torch import Tensor

from emfast.ops import convolution_weight_gradient
from emfast.ops.convolution import Window, unsupported_machine


def native(grad: Tensor, x: Tensor, weight: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """The same in native torch, the gradients in the dtype of the weights, as autocast leaves them."""
    (stride, padding, _), one, mask = window, [1, 1], [False, True, True]
    w = weight.to(grad.dtype)
    _, dweight, dbias = torch.ops.aten.convolution_backward(
        grad, source(x, window), w, [len(w)], [stride] * 2, [padding] * 2, one, False, [0, 0], 1, mask
    )
    return dweight.to(weight.dtype), dbias.to(weight.dtype)


def ours(grad: Tensor, x: Tensor, weight: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """The op."""
    return convolution_weight_gradient(grad, x, None, weight.shape[2], window)


def cases(device: torch.device) -> Iterator[Case]:
    """Yields the rows of the table, for machines that have the kernel. It reads both images and writes the weights."""
    if device.type != "cpu" or unsupported_machine():
        return
    for label, window, x, weight, _, grad in draw(device):
        traffic = {"forward": x.nbytes + grad.nbytes + weight.nbytes}
        calls = [partial(function, window=window) for function in (ours, native)]
        name = "convolution_weight_gradient"
        yield Case(name, label, x.dtype, "channels_last", (grad, x, weight), *calls, traffic)
