from functools import partial

import pytest
import torch
import torch.nn.functional as F
from contracts import any_order, check_accuracy, check_op, draw, require

from emfast.dispatch import backend as forced
from emfast.ops import separable_blur, separable_blur_misfit

SIZES = [(2, 3, 5, 7), (1, 1, 3, 2), (2, 1, 16, 32), (1, 1, 130, 9)]
TAPS = {"rows": torch.tensor([0.2, -0.4, 0.3, 0.5, 0.1]), "columns": torch.tensor([0.3, 0.9, 0.2])}


def native(x, rows, columns, padding):
    """The same in native torch."""
    tall, wide = len(rows) // 2, len(columns) // 2
    x, shape = F.pad(x, (wide, wide, tall, tall), mode=padding), x.shape
    rows, columns = rows.to(x).reshape(1, 1, -1, 1), columns.to(x).reshape(1, 1, 1, -1)
    return F.conv2d(F.conv2d(x.flatten(0, 1)[:, None], rows), columns).reshape(shape)


def native_misfit(x, y, index, **options):
    """The misfit in native torch, its adjoint by automatic differentiation."""
    residual = y - native(x, **options)
    total = residual.double() if x.dtype == torch.float64 else residual.float()
    if index == 2:
        leaf = torch.zeros_like(x, requires_grad=True)
        return torch.autograd.grad(native(leaf, **options), leaf, residual, create_graph=True)[0]
    return (residual, total.square().flatten(1).sum(1))[index]


@pytest.mark.parametrize("padding", ["reflect", "circular"])
def test_contract(padding, backend, device):
    options = {key: value.to(device) for key, value in TAPS.items()} | {"padding": padding}
    pair = [partial(function, **options) for function in (separable_blur, native)]
    check_op(*pair, [{"x": size} for size in SIZES], backend=backend, device=device)


@pytest.mark.parametrize("padding", ["reflect", "circular"])
def test_contract_of_the_misfit(padding, backend, device):
    options = {key: value.to(device) for key, value in TAPS.items()} | {"padding": padding}

    def ours(x, y, index):
        return separable_blur_misfit(x, y, **options)[index]

    pairs = [[partial(ours, index=i), partial(native_misfit, index=i, **options)] for i in range(3)]
    samples = [{"x": size, "y": size} for size in SIZES]
    check_op(*pairs[1], samples[:2], backend=backend, device=device)
    with forced(backend):
        for sample in samples:
            for pair in pairs:
                check_accuracy(*pair, draw(sample, torch.float32, "contiguous", device), f"{sample}")


@pytest.mark.parametrize("padding", ["reflect", "circular"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "taps"), [((1, 2, 17, 9), (9, 15)), ((1, 1, 5, 40), (1, 33)), ((1, 1, 9, 6), (17, 1))]
)
def test_many_taps_and_the_adjoint(size, taps, dtype, padding, backend, device):
    require("separable_blur", backend, device)
    rows, columns = (torch.linspace(-1, 2, n, device=device) / n for n in taps)
    options = {"rows": rows, "columns": columns, "padding": padding}

    def usual(x):
        leaf = torch.zeros_like(x, requires_grad=True)
        return torch.autograd.grad(native(leaf, **options), leaf, x, create_graph=True)[0]

    arguments = draw({"x": size}, dtype, "contiguous", device)
    with forced(backend), any_order():
        check_accuracy(partial(separable_blur, adjoint=True, **options), usual, arguments, f"{size} {taps}")


def test_images_do_not_mix_and_threads_do_not_matter(device):
    x, y = draw({"x": (3, 1, 150, 40), "y": (3, 1, 150, 40)}, torch.float32, "contiguous", device).values()
    taps = {key: value.to(device) for key, value in TAPS.items()}
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(separable_blur_misfit(x, y, **taps))
    torch.set_num_threads(before)
    first = separable_blur_misfit(x[:1], y[:1], **taps)
    for a, b, c, d in zip(*results, first, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert torch.equal(a[:1], d)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": torch.ones(2, 3, 4)}, r"expected x of shape \(B, C, H, W\)"),
        ({"rows": torch.ones(3, 3)}, "expected rows of one dimension"),
        ({"rows": torch.ones(4)}, "expected the number of taps to be odd and < 16"),
        ({"columns": torch.ones(11)}, "expected the number of taps to be odd and < 10, twice the side of the images"),
        ({"rows": torch.ones(3, requires_grad=True)}, "expected the taps to require no gradient"),
        ({"padding": "zeros"}, "expected padding to be reflect or circular"),
    ],
)
def test_bad_arguments(change, sentence):
    usual = {"x": torch.ones(1, 1, 8, 5), "rows": torch.ones(3), "columns": torch.ones(3)}
    with pytest.raises(ValueError, match=sentence):
        separable_blur(**{**usual, **change})
