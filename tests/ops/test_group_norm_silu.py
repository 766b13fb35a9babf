from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from contracts import check_op, draw, evaluate, record

from emfast.dispatch import backend as forced
from emfast.ops import group_norm_silu, modulated

SAMPLES = [
    {"x": ((2, 4, 3, 5), (2, 2, 3, 5)), "weight": (6,), "bias": (6,), "channel_bias": (2, 6), "num_groups": 3},
    {"x": (2, 30, 5, 7), "weight": (30,), "bias": (30,), "num_groups": 3, "silu": False},
    {"x": (3, 4, 1, 1), "weight": (4,), "bias": (4,), "channel_bias": (3, 4), "num_groups": 2, "eps": 1e-3},
    {"x": (1, 17, 1, 40), "num_groups": 17},
    {"x": (2, 32, 16, 16), "weight": (2, 32), "bias": (2, 32), "num_groups": 8},
    {"x": ((1, 80, 8, 8), (1, 48, 8, 8)), "weight": (128,), "bias": (128,), "num_groups": 32},
    {"x": (1, 16, 40, 40), "weight": (16,), "bias": (16,), "channel_bias": (1, 16), "num_groups": 1},
    {"x": (2, 6, 5), "weight": (6,), "bias": (6,), "num_groups": 2},
    {"x": ((2, 16, 32, 32), (2, 16, 32, 32)), "num_groups": 8},  # one program of Triton's backward, several tiles
]


def native(x, num_groups, weight=None, bias=None, channel_bias=None, eps=1e-5, silu=True):
    """The same in native torch."""
    x = torch.cat(x, 1) if isinstance(x, tuple) else x
    ones = (1,) * (x.dim() - 2)
    x = x if channel_bias is None else x + channel_bias.reshape(*channel_bias.shape, *ones)
    per_sample = weight is not None and weight.dim() == 2
    y = F.group_norm(x, num_groups, *((None, None) if per_sample else (weight, bias)), eps)
    y = y * weight.reshape(*weight.shape, *ones) + bias.reshape(*bias.shape, *ones) if per_sample else y
    return F.silu(y) if silu else y


def test_contract(backend, device):
    check_op(group_norm_silu, native, SAMPLES, backend=backend, device=device)


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("chosen", [False, True])  # by whoever calls, or by the table
def test_one_of_weight_and_bias(name, layout, chosen, backend, device):
    arguments = draw({"x": (2, 4, 3, 5), name: (4,)}, torch.float32, layout, device)
    parts = {"weight": torch.ones(4, device=device), "bias": torch.zeros(4, device=device), name: arguments[name]}
    expected = evaluate(lambda x, weight, bias: native(x, 2, weight, bias), {"x": arguments["x"], **parts})
    with forced(backend) if chosen else nullcontext():
        found = evaluate(lambda **given: group_norm_silu(num_groups=2, **given), arguments)
    del expected[3 if name == "weight" else 2]
    for k, n in zip(found, expected, strict=True):
        torch.testing.assert_close(k, n, rtol=1e-5, atol=1e-5)


def test_modulated_is_scale_and_shift_after_the_norm(device):
    sample = {"x": (2, 8, 4, 4), "weight": (8,), "bias": (8,), "scale": (2, 8), "shift": (2, 8)}
    arguments = draw(sample, torch.float64, "contiguous", device)

    def ours(x, weight, bias, scale, shift):
        return group_norm_silu(x, 4, *modulated(weight, bias, scale, shift))

    def usual(x, weight, bias, scale, shift):
        y = F.group_norm(x, 4, weight, bias)
        return F.silu(y * (1 + scale)[..., None, None] + shift[..., None, None])

    for k, n in zip(evaluate(ours, arguments), evaluate(usual, arguments), strict=True):
        torch.testing.assert_close(k, n, rtol=1e-10, atol=1e-10)


def test_offset_far_above_the_deviation(backend, device):
    sample = {"x": (2, 8, 16, 16), "num_groups": 2, "silu": False}
    x = draw(sample, torch.float32, "channels_last", device)["x"] + 1000
    with forced(backend):
        error = group_norm_silu(x, 2, silu=False).double() - native(x.double(), 2, silu=False)
    assert error.abs().max() < 1e-4


def test_parameters_may_be_float32_beside_half_precision(backend, device):
    arguments = draw({"x": (2, 8, 4, 4), "weight": (8,), "bias": (8,)}, torch.bfloat16, "contiguous", device)
    wide = {key: value if key == "x" else value.float() for key, value in arguments.items()}
    with forced(backend):
        assert torch.equal(group_norm_silu(num_groups=2, **arguments), group_norm_silu(num_groups=2, **wide))


@pytest.mark.parametrize(
    ("x", "layout"), [(((1, 24, 4, 4), (1, 8, 4, 4)), "channels_last"), ((1, 32, 4, 4), "contiguous")]
)
def test_bands_of_every_width_give_the_same(x, layout, backend, device):
    if backend != "triton":
        pytest.skip("the kernels of others have no bands")
    from emfast.kernels._tuned import asking, trying

    arguments = draw({"x": x, "num_groups": 8, "weight": (32,), "bias": (32,)}, torch.float32, layout, device)
    with forced(backend), asking() as asked:
        expected = evaluate(group_norm_silu, arguments)
    (forward, row), (backward, other) = asked.items()
    for wanted in (8, 64):  # some groups, more than there are; the default is a group or two
        with forced(backend), trying(forward, (64, row[1], wanted)), trying(backward, (64, row[1], wanted, *other[3:])):
            for one, two in zip(evaluate(group_norm_silu, arguments), expected, strict=True):
                torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_second_derivatives_are_refused(device):
    x = torch.ones(1, 2, 3, 4, device=device, requires_grad=True).mT  # strides with which native torch is not taken
    (gradient,) = torch.autograd.grad(group_norm_silu(x, 1).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second order"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_groups": 3}, "expected num_groups to divide the 4 channels, got 3"),
        ({"num_groups": 2, "weight": torch.ones(3)}, r"expected weight of shape \(C,\) or \(B, C\), got \(3,\)"),
        ({"num_groups": 2, "channel_bias": torch.ones(4)}, r"expected channel_bias of shape \(B, C\)"),
    ],
)
def test_bad_arguments(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        group_norm_silu(torch.ones(2, 4, 3, 3), **arguments)


@pytest.mark.parametrize("silu", [False, True])
def test_small_images_go_to_native_torch_unless_a_backend_is_forced(silu):
    arguments = draw({"x": (2, 8, 4, 4), "weight": (8,), "bias": (8,)}, torch.float32, "contiguous", "cpu")
    options = {"num_groups": 2, "silu": silu}
    usual = evaluate(lambda **tensors: native(**tensors, **options), arguments)
    for k, n in zip(evaluate(lambda **tensors: group_norm_silu(**tensors, **options), arguments), usual, strict=True):
        assert torch.equal(k, n)
    assert not record(lambda **tensors: group_norm_silu(**tensors, **options), arguments)
    with forced("reference"):
        assert record(lambda **tensors: group_norm_silu(**tensors, **options), arguments)
