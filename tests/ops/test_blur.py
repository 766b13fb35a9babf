from functools import partial

import pytest
import torch
import torch.nn.functional as F
from contracts import any_order, check_accuracy, check_op, draw, require

from emfast.dispatch import backend as forced
from emfast.ops import blur, blur_misfit

SIZES = [(2, 3, 5, 7), (1, 1, 3, 2), (2, 1, 16, 32), (1, 1, 70, 9)]


def kernels(x, size=3, shared=False):
    """A kernel for each of the images x, or one for all; some weights are zero."""
    count = 1 if shared else len(x)
    weights = torch.arange(count * size * size, device=x.device) * 7 % 11 - 3.0
    return weights.reshape(count, 1, size, size) / size**2


def ours(x, padding, shared=False, size=3, adjoint=False):
    """The op."""
    return blur(x, kernels(x, size, shared), padding=padding, adjoint=adjoint)


def native(x, padding, shared=False, size=3):
    """The same in native torch."""
    kernel = kernels(x, size, shared).to(x).expand(*x.shape[:2], size, size).flatten(0, 1)[:, None]
    padded = F.pad(x, (size // 2,) * 4, mode=padding).flatten(0, 1)[None]
    return F.conv2d(padded, kernel, groups=len(kernel)).reshape(x.shape)


def native_adjoint(x, **options):
    """The adjoint by automatic differentiation."""
    leaf = torch.zeros_like(x, requires_grad=True)
    return torch.autograd.grad(native(leaf, **options), leaf, x, create_graph=True)[0]


def ours_misfit(x, y, padding, index):
    """One result of the misfit op."""
    return blur_misfit(x, y, kernels(x), padding=padding)[index]


def native_misfit(x, y, padding, index):
    """The same in native torch."""
    residual = y - native(x, padding)
    total = residual.double() if x.dtype == torch.float64 else residual.float()
    if index == 2:
        return native_adjoint(residual, padding=padding)
    return (residual, total.square().flatten(1).sum(1))[index]


@pytest.mark.parametrize(("padding", "shared"), [("reflect", False), ("circular", True)])
def test_contract(padding, shared, backend, device):
    pair = [partial(function, padding=padding, shared=shared) for function in (ours, native)]
    check_op(*pair, [{"x": size} for size in SIZES], backend=backend, device=device)


@pytest.mark.parametrize("padding", ["reflect", "circular"])
def test_contract_of_the_misfit(padding, backend, device):
    pairs = [[partial(f, padding=padding, index=i) for f in (ours_misfit, native_misfit)] for i in range(3)]
    samples = [{"x": size, "y": size} for size in SIZES]
    check_op(*pairs[1], samples[:2], backend=backend, device=device)
    with forced(backend):
        for sample in samples:
            for pair in pairs:
                check_accuracy(*pair, draw(sample, torch.float32, "contiguous", device), f"{sample}")


@pytest.mark.parametrize("padding", ["reflect", "circular"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "taps"), [((1, 2, 11, 6), 11), ((1, 1, 5, 40), 7), ((2, 1, 9, 6), 1)])
def test_many_taps_and_the_adjoint(size, taps, dtype, padding, backend, device):
    require("blur", backend, device)
    options = {"size": taps, "padding": padding}
    arguments = draw({"x": size}, dtype, "contiguous", device)
    with forced(backend), any_order():
        for pair in ((ours, native), (partial(ours, adjoint=True), native_adjoint)):
            check_accuracy(*(partial(f, **options) for f in pair), arguments, f"{size} {taps}")


def test_images_do_not_mix_and_threads_do_not_matter(device):
    x, y = draw({"x": (3, 1, 150, 40), "y": (3, 1, 150, 40)}, torch.float32, "contiguous", device).values()
    kernel, before, results = kernels(x, 5), torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(blur_misfit(x, y, kernel))
    torch.set_num_threads(before)
    for a, b, c, d in zip(*results, blur_misfit(x[:1], y[:1], kernel[:1]), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert torch.equal(a[:1], d)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": torch.ones(2, 3, 4)}, r"expected x of shape \(B, C, H, W\)"),
        ({"kernel": torch.ones(3, 3)}, r"expected kernel of shape \(2 or 1, 1, K, K\), got \(3, 3\) float32"),
        ({"kernel": torch.ones(3, 1, 3, 3)}, "expected kernel of shape"),
        ({"kernel": torch.ones(1, 1, 4, 4)}, "expected the number of taps to be odd"),
        ({"kernel": torch.ones(1, 1, 11, 11)}, "expected the number of taps to be odd and < 10"),
        ({"kernel": torch.ones(1, 1, 3, 3, requires_grad=True)}, "expected the taps to require no gradient"),
    ],
)
def test_bad_arguments(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        blur(**{"x": torch.ones(2, 1, 8, 5), "kernel": torch.ones(1, 1, 3, 3), **change})
