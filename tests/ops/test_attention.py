import pytest
import torch
import torch.nn.functional as F
from contracts import check_accuracy, check_op, require
from torch._subclasses.fake_tensor import FakeTensorMode

from emfast.compilation.precompile import recording
from emfast.dispatch import backend as forced
from emfast.ops import attention, packed_attention
from emfast.ops.attention import largest, unsupported

SIZES = [(2, 2, 5, 3), (1, 1, 1, 1), (2, 1, 3, 8), (1, 3, 33, 17), (2, 4, 64, 8), (1, 2, 300, 16), (1, 1, 256, 256)]
SAMPLES = [{"query": size, "key": size, "value": size} for size in SIZES]
SAMPLES.append({"query": (1, 2, 70, 40), "key": (1, 2, 9, 40), "value": (1, 2, 9, 40), "scale": 0.3})
# What the interpreter runs instead of the largest: more keys than any block holds, and one large head.
LARGE = [SAMPLES.index({"query": size, "key": size, "value": size}) for size in ((1, 2, 300, 16), (1, 1, 256, 256))]
SMALL = [
    {"query": (1, 2, 20, 16), "key": (1, 2, 270, 16), "value": (1, 2, 270, 16)},
    {"query": (1, 1, 40, 256), "key": (1, 1, 40, 256), "value": (1, 1, 40, 256)},
]


def is_interpreted(backend, device):
    """Returns whether a kernel runs in Triton's interpreter, which is slow."""
    return backend == "triton" and device.type == "cpu"


def native(query, key, value, scale=None):
    """The same in native torch."""
    return F.scaled_dot_product_attention(query, key, value, scale=scale)


def test_contract(backend, device):
    few = [sample for index, sample in enumerate(SAMPLES) if index not in LARGE] + SMALL
    samples = few if is_interpreted(backend, device) else SAMPLES
    if backend == "triton":  # whose float32 heads are smaller
        large = [sample for sample in samples if sample["query"][3] > largest(torch.float32)]
        samples = [sample for sample in samples if sample not in large]
        halves = (torch.bfloat16, torch.float16)
        check_op(attention, native, [samples[1], *large], backend=backend, device=device, dtypes=halves)
    check_op(attention, native, samples, backend=backend, device=device)


def packed(qkv, heads, order, function):
    """Attention on the output (B, N, 3 C) of one projection, with the input (B, N, C) of the next as its result."""
    sizes = {"3": 3, "h": heads, "d": qkv.shape[2] // (3 * heads)}
    three, head, size = (2 + order.index(axis) for axis in "3hd")
    x = qkv.unflatten(2, tuple(sizes[axis] for axis in order)).permute(three, 0, head, 1, size)
    return function(x).transpose(1, 2).flatten(2)


PACKED = {"parts": lambda x: attention(*x), "whole": packed_attention}


@pytest.mark.parametrize("which", PACKED)
@pytest.mark.parametrize(("heads", "order"), [(1, "3hd"), (4, "3hd"), (4, "h3d"), (2, "hd3")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_projection_is_read_where_it_is(which, heads, order, dtype, backend, device):
    require("attention", backend, device)
    qkv = torch.randn(2, 65, 96, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    pair = [
        lambda qkv, function=function: packed(qkv, heads, order, function)
        for function in (PACKED[which], lambda x: native(*x))
    ]
    with forced(backend):
        assert attention(*qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)).transpose(1, 2).is_contiguous()
        check_accuracy(*pair, {"qkv": qkv}, f"packed, {heads} heads, {order}, {dtype}")


PACKED_SAMPLES = [
    {"packed": (3, 2, 2, 5, 3)},
    {"packed": (3, 2, 4, 64, 8)},
    {"packed": (3, 1, 1, 33, 64), "scale": 0.3},
]


def test_packed_contract(backend, device):
    def usual(packed, scale=None):
        return native(*packed, scale=scale)

    check_op(packed_attention, usual, PACKED_SAMPLES, backend=backend, device=device)


def test_the_gradient_to_a_packed_projection_is_one_tensor_of_its_strides(device):
    """What autograd would make of three gradients is a stack of them, then a copy in the projection's strides."""
    x = torch.randn(2, 9, 3, 4, 8, device=device).permute(2, 0, 3, 1, 4).requires_grad_()
    with recording() as calls:
        (gradient,) = torch.autograd.grad(packed_attention(x).sum(), x)
    assert gradient.stride() == x.stride()
    assert [op._opname for op, _ in calls] == ["packed_attention", "packed_attention_backward"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_scores_neither_overflow_nor_lose_rows(dtype, backend, device):
    require("attention", backend, device)
    query, key, value = torch.randn(3, 1, 8, 290, 8, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    query = query[:, :, :20] if is_interpreted(backend, device) else query
    with forced(backend):
        check_accuracy(attention, native, {"query": 100 * query, "key": key, "value": value}, "large scores")


def test_what_is_not_finite_stays_in_its_row(backend, device):
    require("attention", backend, device)
    query, key, value = torch.randn(3, 1, 1, 40, 8, generator=torch.Generator().manual_seed(0)).to(device)
    query[0, 0, 3] = float("nan")
    key[0, 0, 7] = 0
    key[0, 0, 7, 0], query[0, 0, :, 0] = -float("inf"), 1  # a key of weight 0
    with forced(backend):
        out = attention(query, key, value)
    others = torch.arange(40, device=device) != 3
    assert out[:, :, 3].isnan().all()
    expected = native(query[:, :, others], key[:, :, torch.arange(40) != 7], value[:, :, torch.arange(40) != 7])
    torch.testing.assert_close(out[:, :, others], expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_heads_split_among_threads(threads, device):
    query, key, value, grad = torch.randn(4, 1, 1, 200, 8, generator=torch.Generator().manual_seed(0)).to(device)
    query.requires_grad_(), key.requires_grad_(), value.requires_grad_()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = torch.autograd.grad(attention(query, key, value), (query, key, value), grad)
    finally:
        torch.set_num_threads(before)
    usual = torch.autograd.grad(native(query, key, value), (query, key, value), grad)
    torch.testing.assert_close(ours, usual)


@pytest.mark.parametrize(
    ("shapes", "scale", "sentence"),
    [
        (((2, 3, 4), (2, 3, 4), (2, 3, 4)), None, r"expected query of shape \(B, H, N, D\), got \(2, 3, 4\)"),
        (((1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3, 5)), None, "expected key of the shape"),
        (((1, 2, 3, 4), (1, 2, 0, 4), (1, 2, 0, 4)), None, "expected key of the shape"),
        (((1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 3, 4)), None, r"expected value of the shape \(1, 2, 5, 4\) of key"),
        (((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)), -1.0, r"expected scale to be positive, got -1\.0"),
    ],
)
def test_bad_arguments(shapes, scale, sentence):
    with pytest.raises(ValueError, match=sentence):
        attention(*map(torch.ones, shapes), scale=scale)


def test_a_projection_that_is_not_packed_is_refused():
    with pytest.raises(
        ValueError, match=r"expected packed of shape \(3, B, H, N, D\), N and D > 0, got \(2, 1, 1, 4, 4\)"
    ):
        packed_attention(torch.ones(2, 1, 1, 4, 4))


def test_mixed_dtypes_are_refused():
    x = torch.ones(1, 1, 2, 2)
    with pytest.raises(TypeError, match=r"expected key of dtype torch\.float32, got torch\.bfloat16"):
        attention(x, x.bfloat16(), x)


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 256), (torch.float32, 64)])
def test_heads_that_fill_a_gpu_are_left_to_the_reference(dtype, most):
    with FakeTensorMode():
        large, small = (torch.empty(1, 1, 2, size, dtype=dtype, device="cuda") for size in (most + 1, most))
    assert f"{most + 1} dimensions of a head" in unsupported(large)
    assert unsupported(small) is None
