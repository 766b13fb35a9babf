"""Winograd's convolution, checked as values against native torch's: nothing differentiates the op."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from contracts import draw, follows_the_rule, in_layouts, require
from torch.nn.grad import conv2d_input

from emfast.dispatch import backend as forced
from emfast.ops import winograd_convolution, winograd_kernel
from emfast.ops._winograd import WIDTHS
from emfast.ops.winograd_convolution import WinogradWeights

# batch, channels of x and skip, of the result, height and width
CASES = [
    (2, (5, 3), 24, (4, 3)),
    (2, (33,), 47, (5, 7)),
    (1, (160,), 200, (1, 1)),  # of few channels, native torch's sums are as good as exact
    (2, (40, 9), 70, (8, 6)),
    (2, (64, 32), 64, (9, 7)),
    (1, (128,), 3, (32, 32)),
    (4, (256, 256), 256, (4, 4)),
    (17, (32,), 32, (16, 16)),
    (1, (300,), 40, (2, 64)),
]
RESAMPLES = [None, "upsample", "pool"]


def tensors(case, dtype, layout, device):
    """The features, the weight and the bias."""
    batch, channels, outputs, size = case
    x, *skip = draw({i: (batch, c, *size) for i, c in enumerate(channels)}, dtype, layout, device).values()
    generator = torch.Generator().manual_seed(1)
    inputs = sum(channels)
    weight = torch.randn(outputs, inputs, 3, 3, generator=generator) / (9 * inputs) ** 0.5
    bias = torch.randn(outputs, generator=generator)
    return x, skip[0] if skip else None, weight.to(device, dtype), bias.to(device, dtype)


def native(x, skip, weight, bias, residual, resample):
    """The same in native torch."""
    h = x if skip is None else torch.cat((x, skip), 1)
    h = F.interpolate(h, scale_factor=2.0) if resample == "upsample" else h
    y = F.conv2d(h, weight, bias, 1, 1)
    y = 4 * F.avg_pool2d(y, 2) if resample == "pool" else y
    return y if residual is None else y + residual


def ours(x, skip, weight, bias, residual, resample, width=2, kept=True):
    """The op, of a kernel that was transformed before or not."""
    options = {"skip": skip, "bias": bias, "residual": residual, "resample": resample}
    weights = WinogradWeights(weight, width=width)
    return winograd_convolution(x, winograd_kernel(weights) if kept else weights, weight.shape[0], **options)


def fits(case, resample, width):
    """Skips images of an odd size, which have no 2 x 2 pixels throughout, and tiles that are too wide."""
    if resample == "pool" and any(n % 2 for n in case[3]):
        pytest.skip("odd")
    if resample and width != 2:
        pytest.skip("resampled images have tiles of width 2")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted"])
@pytest.mark.parametrize("resample", RESAMPLES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_accuracy_rule(case, width, resample, layout, backend, device):
    require("winograd_convolution", backend, device)
    fits(case, resample, width)
    given = tensors(case, torch.float32, layout, device)
    wide = [None if t is None else t.double() for t in given]
    like = native(*given, None, resample)
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(2))
    residual = None if resample == "pool" else torch.empty_like(like).copy_(noise)
    with forced(backend):
        k, again = (ours(*given, residual, resample, width, kept) for kept in (True, False))
    assert torch.equal(k, again)
    exact = native(*wide, None if residual is None else residual.double(), resample)
    assert k.is_contiguous(memory_format=torch.channels_last)
    assert k.shape == exact.shape
    times = 3 if resample == "pool" else 2  # it is the gradient of "upsample"
    follows_the_rule(k, exact, in_layouts(partial(native, resample=resample), *given, residual), times)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_adjoint_kernel_gives_the_gradient(case, width, backend, device):
    require("winograd_convolution", backend, device)
    batch, channels, outputs, size = case
    weight = tensors(case, torch.float32, "contiguous", device)[2]
    grad = draw({"grad": (batch, outputs, *size)}, torch.float32, "contiguous", device)["grad"]
    shape = (batch, sum(channels), *size)
    exact = conv2d_input(shape, weight.double(), grad.double(), padding=1)
    usual = in_layouts(lambda w, g: conv2d_input(shape, w, g, padding=1), weight, grad)
    end = 0
    for count in channels:
        begin, end = end, end + count
        weights = WinogradWeights(weight, begin, end, adjoint=True, width=width)
        with forced(backend):
            k, again = (winograd_convolution(grad, kernel, count) for kernel in (weights, winograd_kernel(weights)))
        assert torch.equal(k, again)
        follows_the_rule(k, exact[:, begin:end], [n[:, begin:end] for n in usual], 3)


@pytest.mark.parametrize(("resample", "width"), [*((resample, 2) for resample in RESAMPLES), (None, 4)])
def test_a_sample_depends_neither_on_the_others_nor_on_threads(resample, width, backend, device):
    require("winograd_convolution", backend, device)
    x, _, weight, bias = tensors((9, (160,), 100, (8, 6)), torch.float32, "channels_last", device)
    before = torch.get_num_threads()
    with forced(backend):
        whole = ours(x, None, weight, bias, None, resample, width)
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                parts = [ours(part, None, weight, bias, None, resample, width, False) for part in x.split([1, 2, 6])]
                if backend == "cpp":
                    assert torch.equal(torch.cat(parts), whole)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_near(value, width, backend, device):
    require("winograd_convolution", backend, device)
    x, _, weight, bias = tensors((1, (16,), 16, (12, 12)), torch.float32, "channels_last", device)
    x[0, 3, 4, 4] = value
    with forced(backend):
        finite = ours(x, None, weight, bias, None, None, width).isfinite()
    assert not finite[:, :, 3:6, 3:6].any()
    assert finite[:, :, :2].all()
    assert finite[:, :, 8:].all()


@pytest.mark.parametrize("resample", RESAMPLES)
def test_registration(resample, backend, device):
    require("winograd_convolution", backend, device)
    x, skip, weight, bias = tensors((2, (5, 3), 4, (4, 6)), torch.float32, "channels_last", device)
    tests, ops = ("test_schema", "test_faketensor"), torch.ops.emfast
    with forced(backend):
        torch.library.opcheck(ops.winograd_kernel, (weight, 2, 7, True, 4), test_utils=tests)
        for kernel, part in ((winograd_kernel(WinogradWeights(weight)), []), (weight, [0, 8, False, 2])):
            arguments = (x, skip, kernel, bias, None, 4, resample == "upsample", resample == "pool", part)
            torch.library.opcheck(ops.winograd_convolution, arguments, test_utils=tests)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kernel": torch.ones(1, 16, 32, 32)}, r"expected kernel of shape \(1, 16, 16, 32\) or \(1, 24, 16, 32\)"),
        ({"kernel": WinogradWeights(torch.ones(24, 8, 3, 3), 1)}, "expected kernel of 8 inputs and 24 outputs"),
        ({"kernel": torch.ones(1, 24, 16, 32), "resample": "upsample"}, "expected kernel for tiles of width 2"),
        ({"skip": torch.ones(1, 3, 4, 3)}, "expected skip of the shape of x but for its channels"),
        ({"bias": torch.ones(5)}, r"expected bias of shape \(24,\)"),
        ({"residual": torch.ones(2, 24, 4, 4)}, r"expected residual of shape \(2, 24, 4, 3\)"),
        ({"resample": "pool"}, "expected x of even height and width"),
        ({"resample": "down"}, "expected resample to be one of"),
    ],
)
def test_bad_arguments(change, sentence):
    x, skip, weight, bias = tensors(CASES[0], torch.float32, "contiguous", "cpu")
    given = {"x": x, "kernel": winograd_kernel(WinogradWeights(weight)), "outputs": 24, "skip": skip, "bias": bias}
    with pytest.raises(ValueError, match=sentence):
        winograd_convolution(**(given | change))


def test_bad_weight():
    with pytest.raises(ValueError, match=r"expected weight of shape \(D, C, 3, 3\)"):
        winograd_kernel(WinogradWeights(torch.ones(2, 3, 5, 5)))
    with pytest.raises(ValueError, match="expected begin and end to be channels of 3"):
        winograd_kernel(WinogradWeights(torch.ones(2, 3, 3, 3), 2, 4))
    with pytest.raises(ValueError, match=r"expected width to be one of \(2, 4\)"):
        winograd_kernel(WinogradWeights(torch.ones(2, 3, 3, 3), width=3))
    with pytest.raises(TypeError, match="expected weight of dtype float32 or float64"):
        winograd_kernel(WinogradWeights(torch.ones(2, 3, 3, 3, dtype=torch.bfloat16)))
