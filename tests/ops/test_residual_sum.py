import pytest
import torch
from contracts import check_op

from emfast.ops import residual_sum

SIZES = [(2, 3, 5, 7), (1, 1, 1, 1), (3, 9, 1, 4), (2, 48, 9, 11), (2, 128, 8, 8), (2, 160, 33, 1)]
SAMPLES = [{"x": size, "r": size, "bias": size[1:2]} for size in SIZES]
SAMPLES += [{"x": (2, 6, 4, 5), "r": (2, 6, 4, 5), "s": (2, 6, 4, 5), "bias": (6,), "scale": 0.7071}]
SAMPLES += [{"x": (2, 6, 4, 5), "bias": (6,)}, {"x": (2, 6, 4, 5), "r": (2, 6, 4, 5), "scale": 0.5}]


def ours(x, r=None, s=None, bias=None, scale=1.0):
    """The op, with its terms by name."""
    return residual_sum(*[term for term in (x, r, s) if term is not None], bias=bias, scale=scale)


def native(x, r=None, s=None, bias=None, scale=1.0):
    """The same in native torch."""
    for term in (r, s):
        x = x if term is None else x + term
    x = x if bias is None else x + bias[:, None, None]
    return x if scale == 1 else x * scale


def test_contract(backend, device):
    check_op(ours, native, SAMPLES, backend=backend, device=device)


def test_terms_may_have_other_strides_than_the_first(device):
    x, r = torch.randn(2, 2, 6, 4, 5, device=device)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    r.requires_grad_()
    y = residual_sum(x, r, bias=torch.ones(6, device=device))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, x + r + 1)
    assert all(torch.equal(g, torch.ones_like(x)) for g in torch.autograd.grad(y.sum(), (x, r)))


def test_a_scale_of_one_costs_the_backward_nothing():
    x, r = torch.randn(2, 2, 6, 4, 5).requires_grad_()
    grad = torch.randn(2, 6, 4, 5)
    found = torch.autograd.grad(residual_sum(x, r), (x, r), grad)
    assert all(g.data_ptr() == grad.data_ptr() for g in found)


@pytest.mark.parametrize(
    ("terms", "bias", "sentence"),
    [
        ([], None, "expected the number of terms to be 1 to 3, got 0"),
        ([(2, 3, 4)] * 4, None, "expected the number of terms to be 1 to 3, got 4"),
        ([(3,)], None, r"expected x of shape \(B, C, \.\.\.\)"),
        ([(2, 3, 4), (2, 3, 1)], None, r"expected every term of the shape \(2, 3, 4\) of the first, got \(2, 3, 1\)"),
        ([(2, 3, 4)], (4,), r"expected bias of shape \(3,\), got \(4,\)"),
    ],
)
def test_bad_arguments(terms, bias, sentence):
    with pytest.raises(ValueError, match=sentence):
        residual_sum(*map(torch.ones, terms), bias=None if bias is None else torch.ones(bias))


def test_mixed_dtypes_are_refused():
    x = torch.ones(1, 1, 2, 2)
    with pytest.raises(TypeError, match=r"expected every term of dtype torch\.float32, got torch\.bfloat16"):
        residual_sum(x, x.bfloat16())
