"""Every op on every backend gives what its reference gives, in whatever strides and wherever its inputs lie."""

import pytest
import torch
from contracts import max_norm, require
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from emfast._library import OPS
from emfast.dispatch import way

BF16 = torch.bfloat16
TOLERANCE = {torch.float32: 2e-5, BF16: 3e-2}  # of the largest value


def some(*shape, dtype=torch.float32):
    """Random numbers, the same ones for a shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


X, SKIP, B16 = some(2, 6, 4, 6), some(2, 2, 4, 6), some(2, 6, 4, 6, dtype=BF16)
IDS, STEP, TAPS = torch.tensor([5, 2**40 + 3]), torch.tensor(2), some(2, 1, 3, 3)
HEADS, ROWS = some(2, 3, 5, 4), some(2, 3, 5)
PARAMETERS = (some(2, 8), some(8), some(8))  # of a normalisation: channel_bias, weight, bias
WEIGHTS = [some(3, 8, 3, 3), some(2, 8, 3, 3)]
CALLS = [
    ("normal", (3, 5), IDS, STEP, -5),
    ("sampler_update", X, X + 1, X + 2, some(4, 9).double(), STEP, IDS, -5),
    ("mask_misfit", X, X + 1, (some(2, 1, 4, 6) > 0).float()),
    ("blur", X, TAPS, False, False),
    ("blur_misfit", X, X + 1, TAPS, True),
    ("separable_blur", X, some(3), some(5), False, True),
    ("separable_blur_misfit", X, X + 1, some(3), some(5), False),
    ("residual_sum", X, X + 1, X + 2, some(6), 0.5),
    ("attention", HEADS, HEADS + 1, HEADS - 1, 0.5),
    ("attention_backward", HEADS + 2, HEADS, HEADS + 1, HEADS - 1, HEADS - 2, ROWS, 0.5),
    ("packed_attention", some(3, 2, 3, 5, 4), 0.5),
    ("packed_attention_backward", HEADS, some(3, 2, 3, 5, 4), HEADS + 1, ROWS, 0.5),
    ("group_norm_silu", X, SKIP, *PARAMETERS, 2, 1e-5, True),
    ("group_norm_silu", X, None, *(some(2, 6) for _ in range(3)), 2, 1e-5, False),
    ("group_norm_silu_backward", some(2, 8, 4, 6), X, SKIP, *PARAMETERS, some(2, 2, 2), 2, True, True, X + 1, SKIP + 1),
    ("winograd_kernel", some(5, 8, 3, 3), 1, 7, True, 4),
    ("winograd_convolution", X, SKIP, some(5, 8, 3, 3), some(5), some(2, 5, 4, 6), 5, False, False, [0, 8, 0, 2]),
    ("winograd_convolution", X, SKIP, some(1, 16, 16, 32), None, None, 5, True, False, []),
    ("winograd_weight_gradient", some(2, 5, 4, 6), X, SKIP, False, 4),
    ("convolution", B16, SKIP.to(BF16), WEIGHTS, [some(3), some(2)], some(2, 5, 4, 6, dtype=BF16), 1, 1, False),
    ("convolution_input_gradient", some(2, 5, 4, 6, dtype=BF16), WEIGHTS, [6, 4, 6], 1, 1, False),
    ("convolution_weight_gradient", some(2, 5, 4, 6, dtype=BF16), B16, SKIP.to(BF16), 3, 1, 1, False),
]


def within(x, pad):
    """Uninitialised memory, in which what is read by mistake shows, with room for `pad` more at the end of each row."""
    return x.new_full((*x.shape[:-1], x.shape[-1] + pad), float("nan") if x.is_floating_point() else 2**61)


def strided(x):
    """The same values, every other number of a larger tensor; a single one is in its middle."""
    view = within(x, x.shape[-1])[..., 1::2] if x.dim() else within(x[None], 2)[1]
    return view.copy_(x)


def transposed(x):
    """The same values, their dimensions in the opposite order in memory."""
    order = tuple(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


def expanded(x):
    """Other values: one for the whole of the first and the last dimension."""
    return x[:1, ..., :1].expand_as(x) if x.dim() > 1 else x[:1].expand_as(x) if x.dim() else x


def offset(x):
    """The same values in a row, somewhere in a larger storage."""
    return within(x.reshape(1, -1), 10)[0, 3:-7].view(x.shape).copy_(x)


@pytest.mark.parametrize("arrange", [strided, transposed, expanded, offset, torch.clone])
@pytest.mark.parametrize(("name", "arguments"), [(call[0], call[1:]) for call in CALLS], ids=lambda v: str(v)[:26])
def test_inputs_may_lie_anywhere(name, arguments, arrange, backend, device):
    require(name, backend, device)
    kernel, arguments = way(name, backend), tree_map_only(Tensor, lambda t: t.to(device), list(arguments))
    reason = kernel.unsupported(*arguments)
    if reason:
        pytest.skip(f"{name} on {backend}: {reason}")
    dense = tree_map_only(Tensor, lambda t: arrange(t).clone(memory_format=torch.contiguous_format), arguments)
    expected = way(name, "reference").compute(*dense)
    # No one but the call holds its arguments. What is unsupported in these strides alone goes to the reference.
    found = computed(kernel, way(name, "reference"), *tree_map_only(Tensor, arrange, arguments))
    for k, r in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert (k.shape, k.dtype) == (r.shape, r.dtype)
        assert max_norm(k - r) <= TOLERANCE[arguments_dtype(arguments)] * max_norm(r)


def computed(kernel, reference, *arguments):
    """What a kernel computes if it takes the arguments, else what the reference does."""
    return (reference if kernel.unsupported(*arguments) else kernel).compute(*arguments)


def arguments_dtype(arguments):
    """The dtype that an op computes in."""
    return BF16 if any(isinstance(x, Tensor) and x.dtype == BF16 for x in tree_leaves(arguments)) else torch.float32


def test_every_op_is_called_here():
    assert {call[0] for call in CALLS} == OPS.keys()
