"""Convolution and its input gradient: nothing differentiates the ops, so that both are checked as values."""

import pytest
import torch
import torch.nn.functional as F
from contracts import draw, max_norm, require, rms_norm

from emfast.dispatch import backend as forced
from emfast.ops.convolution import convolution, convolution_input_gradient, unsupported_machine

# batch, channels of x and skip, of each weight, height and width, kernel, (stride, padding, upsample)
CASES = [
    (2, (5, 3), (4, 2), (4, 3), 3, (1, 1, False)),
    (2, (33,), (47,), (5, 7), 3, (1, 1, False)),
    (1, (3,), (5,), (1, 1), 3, (1, 1, False)),
    (2, (64, 32), (64,), (9, 7), 1, (1, 0, False)),
    (1, (32,), (8,), (32, 32), 3, (1, 0, False)),
    (2, (40,), (33,), (9, 8), 3, (2, 0, False)),
    (2, (40,), (33,), (9, 8), 3, (2, 1, False)),
    (2, (40, 4), (33,), (8, 9), 3, (2, 2, False)),
    (1, (8,), (8,), (5, 4), 1, (2, 0, False)),
    (2, (40,), (33, 5), (5, 8), 3, (1, 1, True)),
    (4, (256,), (256,), (4, 4), 3, (1, 1, False)),
    (2, (64,), (40, 33), (8, 12), 1, (1, 0, False)),  # pixels that are multiplied where they lie
    (70, (64,), (64,), (8, 8), 1, (1, 0, False)),  # from here on in pieces
    (40, (32,), (32,), (16, 16), 3, (1, 1, False)),
    (7, (40, 4), (33,), (30, 31), 3, (2, 1, False)),
]


def tensors(case, dtype, layout, device):
    """The features in a dtype and layout; the weights in float32 and of the size that keeps the features'."""
    batch, channels, outputs, size, kernel, _ = case
    x = {f"x{i}": (batch, c, *size) for i, c in enumerate(channels)}
    inputs = list(draw(x, dtype, layout, device).values())
    generator = torch.Generator().manual_seed(1)
    shape = (sum(channels), kernel, kernel)
    weights = [torch.randn(d, *shape, generator=generator).to(device) for d in outputs]
    biases = [torch.randn(d, generator=generator).to(device) for d in outputs]
    return [*inputs, None][:2], [w / (shape[0] * kernel**2) ** 0.5 for w in weights], biases


def native(inputs, weights, biases, residual, window):
    """The same in native torch."""
    stride, padding, upsample = window
    h = torch.cat([x for x in inputs if x is not None], 1)
    h = F.interpolate(h, scale_factor=2.0) if upsample else h
    y = F.conv2d(h, torch.cat(weights).to(h.dtype), torch.cat(biases).to(h.dtype), stride, padding)
    return y if residual is None else y + residual


def runnable(backend, device, dtype):
    """Skips what the kernel does not take."""
    require("convolution", backend, device)
    if backend == "cpp" and (dtype != torch.bfloat16 or unsupported_machine()):
        pytest.skip(unsupported_machine() or f"{dtype}")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_accuracy_rule(case, dtype, layout, backend, device):
    runnable(backend, device, dtype)
    inputs, weights, biases = tensors(case, dtype, layout, device)
    window, shape = case[5], inputs[0].shape
    like = native(inputs, weights, biases, None, window)
    residual, grad = (torch.empty_like(like).copy_(torch.randn(like.shape).to(dtype)) for _ in range(2))
    with forced(backend):
        ours = convolution(*inputs, weights, biases, residual, window)
        again = convolution(*inputs, weights, biases, residual, window)
        slopes = convolution_input_gradient(grad, weights, shape, window)
    assert torch.equal(ours, again)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    expected = [evaluate(inputs, weights, biases, residual, grad, window, d) for d in (torch.float64, dtype)]
    slopes = [slope for slope, x in zip(slopes, inputs, strict=True) if x is not None]
    for index, (k, r, n) in enumerate(zip([ours, *slopes], *expected, strict=True)):
        for norm in (max_norm, rms_norm):
            allowed = (3 if index else 2) * norm(n - r) + torch.finfo(dtype).eps * norm(r)
            assert norm(k - r) <= allowed, f"{index} {norm.__name__} {norm(k - r):.2e} > {allowed:.2e}"


def evaluate(inputs, weights, biases, residual, grad, window, dtype):
    """Native torch's value and gradients to the inputs, in a dtype."""
    inputs = [None if x is None else x.detach().to(dtype).requires_grad_() for x in inputs]
    y = native(inputs, [w.to(dtype) for w in weights], [b.to(dtype) for b in biases], residual.to(dtype), window)
    return [y.detach(), *torch.autograd.grad(y, [x for x in inputs if x is not None], grad.to(dtype))]


@pytest.mark.parametrize("window", [(1, 1, False), (2, 1, False), (1, 1, True)], ids=str)
def test_registration(window, backend, device):
    runnable(backend, device, torch.bfloat16)
    case = (*CASES[0][:5], window)
    inputs, weights, biases = tensors(case, torch.bfloat16, "channels_last", device)
    with forced(backend):
        y = convolution(*inputs, weights, biases, None, window)
        tests = ("test_schema", "test_faketensor")
        ops = torch.ops.emfast
        torch.library.opcheck(ops.convolution, (*inputs, weights, biases, None, *window), test_utils=tests)
        arguments = (y, weights, list(inputs[0].shape[1:]), *window)
        torch.library.opcheck(ops.convolution_input_gradient, arguments, test_utils=tests)


def test_no_derivative_but_by_the_layers(device):
    inputs, weights, biases = tensors(CASES[0], torch.float32, "contiguous", device)
    y = convolution(inputs[0].requires_grad_(), inputs[1], weights, biases, None, CASES[0][5])
    with pytest.raises(NotImplementedError, match="convolution"):
        y.sum().backward()
