import torch
import torch.nn.functional as F
from contracts import check_op

from emfast.compilation.precompile import recording
from emfast.ops import group_norm_fork

SAMPLES = [
    {"x": ((2, 4, 3, 5), (2, 2, 3, 5)), "weight": (6,), "bias": (6,), "num_groups": 3},
    {"x": (2, 6, 3, 5), "weight": (6,), "bias": (6,), "num_groups": 3, "silu": False},
    {"x": (2, 30, 5, 7), "num_groups": 3},
    {"x": (2, 32, 16, 16), "weight": (2, 32), "bias": (2, 32), "num_groups": 8},
    {"x": ((1, 80, 8, 8), (1, 48, 8, 8)), "weight": (128,), "bias": (128,), "num_groups": 32},
    {"x": (1, 16, 40, 40), "weight": (16,), "bias": (16,), "num_groups": 1},
]


def joined(x):
    """One tensor of one or two."""
    return torch.cat(x, 1) if isinstance(x, tuple) else x


def ours(x, num_groups, weight=None, bias=None, silu=True):
    """Both results in one, as a residual block has them."""
    y, x = group_norm_fork(x, num_groups, weight, bias, silu=silu)
    return y + 2 * joined(x)


def native(x, num_groups, weight=None, bias=None, silu=True):
    """The same in native torch."""
    x = joined(x)
    ones, per_sample = (1,) * (x.dim() - 2), weight is not None and weight.dim() == 2
    y = F.group_norm(x, num_groups, *((None, None) if per_sample else (weight, bias)))
    y = y * weight.reshape(*weight.shape, *ones) + bias.reshape(*bias.shape, *ones) if per_sample else y
    return (F.silu(y) if silu else y) + 2 * x


def test_contract(backend, device):
    check_op(ours, native, SAMPLES, backend=backend, device=device)


def test_gradients_meet_in_the_kernel(device):
    x = torch.randn(2, 6, 4, 4, device=device, requires_grad=True)
    y, same = group_norm_fork(x, 3)
    assert torch.equal(same, x)
    with recording() as calls:
        torch.autograd.grad((y, same), x, (torch.ones_like(y), torch.ones_like(x)))
    assert [op._opname for op, _ in calls] == ["group_norm_silu_backward"]
    assert calls[0][1][-2] is not None


def test_either_way_may_be_left_out(device):
    x = torch.randn(2, 6, 4, 4, device=device, requires_grad=True)
    for index in range(2):
        outputs, usual = group_norm_fork(x, 3), (F.silu(F.group_norm(x, 3)), x)
        found, expected = (torch.autograd.grad(pair[index].square().sum(), x) for pair in (outputs, usual))
        torch.testing.assert_close(found, expected)
