import pytest
import torch
import torch.nn.functional as F
from contracts import check_op

from emfast._library import backend as forced
from emfast.ops import packed_attention

SIZES = [(2, 2, 5, 3), (1, 1, 1, 1), (1, 3, 33, 17), (2, 4, 64, 8), (1, 2, 300, 16), (1, 1, 256, 256)]


def native(qkv, scale=None):
    """The same in native torch."""
    return F.scaled_dot_product_attention(*qkv.unbind(), scale=scale)


def test_contract(backend, device):
    samples = [{"qkv": (3, *size)} for size in SIZES] + [{"qkv": (3, 1, 2, 40, 16), "scale": 0.3}]
    check_op(packed_attention, native, samples, backend=backend, device=device)


@pytest.mark.parametrize("order", [(2, 0, 3, 1, 4), (3, 0, 2, 1, 4)])
def test_gradient_lies_as_the_projection(order, device):
    shape = [0] * 5
    for place, size in zip(order, (3, 2, 4, 65, 8), strict=True):
        shape[place] = size
    x = torch.randn(shape, device=device, requires_grad=True)
    packed = x.permute(order)
    with forced("reference" if device.type == "cuda" else "cpp"):
        out = packed_attention(packed)
    assert out.transpose(1, 2).is_contiguous()
    (gradient,) = torch.autograd.grad(out.sum(), packed)
    assert gradient.stride() == packed.stride()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"qkv": torch.ones(2, 1, 1, 4, 4)}, r"expected qkv of shape \(3, B, H, N, D\)"),
        ({"qkv": torch.ones(3, 1, 1, 4, 4), "scale": 0.0}, "expected scale to be positive"),
    ],
)
def test_bad_arguments(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        packed_attention(**arguments)
