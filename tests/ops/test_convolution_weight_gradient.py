"""The gradients of weight and bias, checked as values against native torch's."""

import pytest
import torch
import torch.nn.functional as F
from contracts import draw, max_norm, require, rms_norm

from emfast.dispatch import backend as forced
from emfast.ops import convolution_weight_gradient
from emfast.ops.convolution import unsupported_machine

# batch, channels of x and skip, of the result, height and width, kernel, (stride, padding, upsample)
CASES = [
    (2, (5, 3), 4, (4, 3), 3, (1, 1, False)),
    (2, (33,), 47, (5, 7), 3, (1, 1, False)),
    (1, (3,), 5, (1, 1), 3, (1, 1, False)),
    (2, (40, 9), 70, (8, 6), 3, (1, 1, False)),
    (3, (8,), 8, (4, 4), 3, (1, 0, False)),
    (3, (8,), 8, (4, 4), 3, (1, 2, False)),
    (2, (64, 32), 64, (9, 7), 1, (1, 0, False)),
    (2, (64,), 64, (9, 9), 3, (2, 0, False)),
    (2, (64,), 64, (8, 7), 3, (2, 1, False)),
    (2, (20,), 64, (9, 7), 1, (2, 0, False)),
    (2, (64,), 33, (8, 5), 3, (1, 1, True)),
    (8, (32,), 32, (32, 32), 3, (1, 1, False)),
]


def native(inputs, grad, kernel, window, dtype):
    """The same in native torch."""
    stride, padding, upsample = window
    h = torch.cat([x for x in inputs if x is not None], 1).detach().to(dtype)
    h = F.interpolate(h, scale_factor=2.0) if upsample else h
    weight = torch.zeros(grad.shape[1], h.shape[1], kernel, kernel, dtype=dtype, device=h.device, requires_grad=True)
    bias = torch.zeros(grad.shape[1], dtype=dtype, device=h.device, requires_grad=True)
    return torch.autograd.grad(F.conv2d(h, weight, bias, stride, padding), (weight, bias), grad.to(dtype))


def arguments(case, dtype, layout, device):
    """The gradient, the inputs, the kernel's size and the window."""
    batch, channels, outputs, size, kernel, (stride, padding, upsample) = case
    shape = [((2 if upsample else 1) * n + 2 * padding - kernel) // stride + 1 for n in size]
    sample = {"grad": (batch, outputs, *shape)} | {f"x{i}": (batch, c, *size) for i, c in enumerate(channels)}
    grad, *inputs = draw(sample, dtype, layout, device).values()
    return grad, *[*inputs, None][:2], kernel, case[5]


def runnable(backend, device, dtype):
    """Skips what the kernel does not take."""
    require("convolution_weight_gradient", backend, device)
    if backend == "cpp" and (dtype != torch.bfloat16 or unsupported_machine()):
        pytest.skip(unsupported_machine() or f"{dtype}")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_accuracy_rule(case, dtype, layout, backend, device):
    runnable(backend, device, dtype)
    grad, *inputs, kernel, window = arguments(case, dtype, layout, device)
    with forced(backend):
        ours, again = (convolution_weight_gradient(grad, *inputs, kernel, window) for _ in range(2))
    expected = [native(inputs, grad, kernel, window, d) for d in (torch.float64, dtype)]
    for k, same, r, n in zip(ours, again, *expected, strict=True):
        assert torch.equal(k, same)
        assert k.is_contiguous()
        assert k.dtype == torch.float32
        for norm in (max_norm, rms_norm):
            allowed = 3 * norm(n - r) + torch.finfo(dtype).eps * norm(r)
            assert norm(k - r) <= allowed, f"{norm.__name__} {norm(k - r):.2e} > {allowed:.2e}"


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads, backend, device):
    runnable(backend, device, torch.bfloat16)
    grad, *inputs, kernel, window = arguments(CASES[-1], torch.bfloat16, "channels_last", device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with forced(backend):
            ours = convolution_weight_gradient(grad, *inputs, kernel, window)
    finally:
        torch.set_num_threads(before)
    for k, r in zip(ours, native(inputs, grad, kernel, window, torch.float64), strict=True):
        assert max_norm(k - r) <= torch.finfo(torch.bfloat16).eps * max_norm(r)


def test_registration(backend, device):
    runnable(backend, device, torch.bfloat16)
    *tensors, window = arguments(CASES[0], torch.bfloat16, "channels_last", device)
    with forced(backend):
        op, tests = torch.ops.emfast.convolution_weight_gradient, ("test_schema", "test_faketensor")
        torch.library.opcheck(op, (*tensors, *window), test_utils=tests)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"grad": torch.ones(2, 4, 4, 4)}, r"expected grad of shape \(2, D, 4, 3\)"),
        ({"skip": torch.ones(1, 3, 4, 3)}, "expected skip of the shape of x but for its channels"),
    ],
)
def test_bad_arguments(change, sentence):
    given = dict(zip(("grad", "x", "skip"), arguments(CASES[0], torch.float32, "contiguous", "cpu"), strict=False))
    with pytest.raises(ValueError, match=sentence):
        convolution_weight_gradient(*(given | change).values(), 3, (1, 1, False))
