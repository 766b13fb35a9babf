"""The weight gradient by Winograd's algorithm, checked as values against native torch's."""

import pytest
import torch
import torch.nn.functional as F
from contracts import draw, follows_the_rule, in_layouts, require
from torch.nn.grad import conv2d_weight

from emfast.dispatch import backend as forced
from emfast.ops import winograd_weight_gradient
from emfast.ops._winograd import WIDTHS

# batch, channels of x and skip, of the result, height and width; of few pixels, native sums are as good as exact
CASES = [
    (80, (5, 3), 4, (4, 3)),
    (9, (33,), 47, (5, 7)),
    (40, (3,), 5, (1, 1)),
    (2, (40, 9), 70, (8, 6)),
    (4, (256, 256), 256, (4, 4)),
    (8, (64,), 64, (32, 32)),  # in several chunks
]


def native(grad, x, skip, upsample, dtype):
    """The same in native torch."""
    h = (x if skip is None else torch.cat((x, skip), 1)).to(dtype)
    h = F.interpolate(h, scale_factor=2.0) if upsample else h
    return conv2d_weight(h, (grad.shape[1], h.shape[1], 3, 3), grad.to(dtype), padding=1)


def arguments(case, upsample, layout, device):
    """The gradient and the inputs."""
    batch, channels, outputs, size = case
    sizes = {"grad": (batch, outputs, *(n * (2 if upsample else 1) for n in size))}
    sizes |= {f"x{i}": (batch, c, *size) for i, c in enumerate(channels)}
    grad, *inputs = draw(sizes, torch.float32, layout, device).values()
    return grad, *[*inputs, None][:2]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted"])
@pytest.mark.parametrize(("upsample", "width"), [(True, 2), *((False, width) for width in WIDTHS)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_accuracy_rule(case, upsample, width, layout, backend, device):
    require("winograd_weight_gradient", backend, device)
    given = arguments(case, upsample, layout, device)
    with forced(backend):
        k, again = (winograd_weight_gradient(*given, upsample=upsample, width=width) for _ in range(2))
    assert torch.equal(k, again)
    assert k.is_contiguous()
    usual = in_layouts(lambda *tensors: native(*tensors, upsample, torch.float32), *given)
    follows_the_rule(k, native(*given, upsample, torch.float64), usual, 3)


@pytest.mark.parametrize("case", CASES[-2:], ids=str)  # more outputs than tiles, and more tiles than outputs
@pytest.mark.parametrize("width", WIDTHS)
def test_the_same_for_any_number_of_threads(width, case, backend, device):
    require("winograd_weight_gradient", backend, device)
    given, before, results = arguments(case, False, "channels_last", device), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with forced(backend):
                results.append(winograd_weight_gradient(*given, width=width))
    finally:
        torch.set_num_threads(before)
    if backend == "cpp":
        assert all(torch.equal(results[0], result) for result in results)


def test_registration(backend, device):
    require("winograd_weight_gradient", backend, device)
    given = arguments(CASES[0], True, "channels_last", device)
    with forced(backend):
        op, tests = torch.ops.emfast.winograd_weight_gradient, ("test_schema", "test_faketensor")
        torch.library.opcheck(op, (*given, True, 2), test_utils=tests)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"grad": torch.ones(80, 4, 4, 4)}, ValueError, r"expected grad of shape \(80, D, 4, 3\)"),
        ({"skip": torch.ones(1, 3, 4, 3)}, ValueError, "expected skip of the shape of x but for its channels"),
        ({"x": torch.ones(80, 5, 4, 3).double()}, TypeError, "expected x of dtype torch.float32"),
        ({"width": 3}, ValueError, r"expected width to be one of \(2, 4\), 2 if upsampled"),
    ],
)
def test_bad_arguments(change, error, sentence):
    given = dict(zip(("grad", "x", "skip"), arguments(CASES[0], False, "contiguous", "cpu"), strict=True))
    with pytest.raises(error, match=sentence):
        winograd_weight_gradient(**(given | change))
