from functools import partial

import pytest
import torch
from contracts import check_accuracy, check_op, draw, require

from emfast.dispatch import backend as forced
from emfast.ops import mask_misfit

SIZES = [(2, 3, 5, 7), (3, 1, 1, 1), (2, 1, 32, 40)]
SAMPLES = [{"x": size, "y": size} for size in SIZES]


def mask_of(x, shared, wide):
    """A mask for images x: one for all or one each, in float32 or in the dtype of x."""
    count, height, width = 1 if shared else len(x), *x.shape[2:]
    mask = (torch.arange(count * height * width, device=x.device) * 7 % 5 > 1).reshape(count, 1, height, width)
    return mask.float() if wide and x.dtype != torch.float64 else mask.to(x.dtype)


def ours(x, y, index, shared, wide):
    """One result of the op."""
    return mask_misfit(x, y, mask_of(x, shared, wide))[index]


def native(x, y, index, shared, wide):
    """The same in native torch."""
    mask = mask_of(x, shared, wide).to(x.dtype)
    residual = y - mask * x
    total = residual.double() if x.dtype == torch.float64 else residual.float()
    return (residual, total.square().flatten(1).sum(1), mask * residual)[index]


@pytest.mark.parametrize("shared", [False, True])
def test_contract(shared, backend, device):
    pairs = [[partial(f, index=i, shared=shared, wide=shared) for f in (ours, native)] for i in range(3)]
    check_op(*pairs[1], SAMPLES, backend=backend, device=device)
    with forced(backend):
        for sample in (*SAMPLES, {"x": (1, 2, 130, 130), "y": (1, 2, 130, 130)}):
            for pair in pairs:
                check_accuracy(*pair, draw(sample, torch.bfloat16, "contiguous", device), f"{sample}")


def test_images_do_not_mix_and_an_expanded_mask_is_one_mask(backend, device):
    require("mask_misfit", backend, device)
    x, y = draw({"x": (3, 3, 40, 40), "y": (3, 3, 40, 40)}, torch.float32, "contiguous", device).values()
    mask = mask_of(x, True, True)
    with forced(backend):
        whole, first = mask_misfit(x, y, mask), mask_misfit(x[:1], y[:1], mask)
        expanded = mask_misfit(x, y, mask.expand(3, -1, -1, -1))
    for a, b, c in zip(whole, expanded, first, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[:1], c)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"x": torch.ones(2, 3, 4)}, ValueError, r"expected x of shape \(B, C, H, W\)"),
        ({"y": torch.ones(2, 3, 4, 4)}, ValueError, r"expected y of the shape \(2, 3, 4, 5\) of x"),
        ({"y": torch.ones(2, 3, 4, 5).double()}, TypeError, r"expected y of dtype torch\.float32"),
        ({"mask": torch.ones(2, 3, 4, 5)}, ValueError, r"expected mask of shape \(2 or 1, 1, 4, 5\)"),
        ({"mask": torch.ones(1, 1, 4, 5).bool()}, TypeError, r"expected mask of dtype torch\.float32 or"),
        ({"mask": torch.ones(1, 1, 4, 5, requires_grad=True)}, ValueError, "to require no gradient"),
    ],
)
def test_bad_arguments(change, error, sentence):
    usual = {"x": torch.ones(2, 3, 4, 5), "y": torch.ones(2, 3, 4, 5), "mask": torch.ones(1, 1, 4, 5)}
    with pytest.raises(error, match=sentence):
        mask_misfit(**{**usual, **change})
