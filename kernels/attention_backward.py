"""The gradients of attention, from its result and the log-sum-exp of its scores; see attention.py.

If all keys fit a block, one kernel loops over the queries and writes all gradients: every weight is computed once. Else
one kernel writes the gradient to the queries, then another those to keys and values.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import launch
from .attention import (
    LOG2_E,
    configure,
    empty,
    form,
    limited,
    load_tile,
    locate_rows,
    multiply,
    place,
    products,
    store_tile,
    transposed,
)

# As FORWARD. Rows that hold all keys compute every weight once.
BACKWARD = {
    (2, 16): ((4, 16, 64, 4, 1), (1, 64, 256, 8, 1), (4, 32, 32, 4, 2)),
    (2, 32): ((1, 32, 256, 8, 1), (1, 64, 64, 4, 2)),
    (2, 64): ((1, 32, 64, 4, 1), (1, 64, 64, 4, 2)),
    (2, 128): ((1, 64, 64, 8, 1),),
    (2, 256): ((1, 32, 32, 8, 1),),
    (4, 16): ((1, 16, 256, 8, 1), (1, 32, 32, 4, 1)),
    (4, 32): ((1, 32, 32, 4, 1),),
    (4, 64): ((1, 32, 32, 8, 1),),
}
BACKWARD_BY_WARPGROUPS = {(2, 16): ((4, 16, 64, 4, 1), (1, 32, 256, 4, 2), (1, 64, 64, 4, 2))}


@triton.jit
def attention_query_kernel(
    grad, query, key, value, out, lse, delta, dquery, heads, tokens, keys, scale,
    FORM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Writes the gradient to BLOCK_M queries of some heads, and delta, the sum of grad * out over the dimension.

    Grid: images x groups of heads x blocks of queries. Loops over the keys and recomputes the weights. Moves query,
    grad, out and dquery once; key and value once per block of queries, mostly out of the cache.
    """
    where, m = place(heads, tokens, BLOCK_M, FORM)
    row, mask = locate_rows(where, m, tokens, FORM)
    g = load_tile(grad, where, m, tokens, FORM)
    d = tl.sum(g.to(tl.float32) * load_tile(out, where, m, tokens, FORM).to(tl.float32), -1)
    tl.store(delta + row, d, mask=mask)
    q = load_tile(query, where, m, tokens, FORM)
    shift, power = tl.load(lse + row, mask=mask, other=0.0) * LOG2_E, scale * LOG2_E
    sums = tl.zeros(q.shape, tl.float32)
    for start in range(0, keys, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        k = load_tile(key, where, n, keys, FORM)
        v = load_tile(value, where, n, keys, FORM)
        if query.address.dtype.element_ty == tl.float32:  # transposed, since query and grad would fill the registers
            p = tl.exp2(products(k, q) * power - tl.expand_dims(shift, -2))
            slope = limited(p * (products(v, g) - tl.expand_dims(d, -2)), n, keys, 0.0, -2, EVEN)
            sums += multiply(transposed(slope), k, FORM)
        else:
            p = tl.exp2(products(q, k) * power - tl.expand_dims(shift, -1))
            slope = limited(p * (products(g, v) - tl.expand_dims(d, -1)), n, keys, 0.0, -1, EVEN)
            sums += multiply(slope, k, FORM)
    store_tile(dquery, sums * scale, where, m, tokens, FORM)


@triton.jit
def attention_key_kernel(
    grad, query, key, value, out, lse, delta, dquery, dkey, dvalue, heads, tokens, keys, scale,
    FORM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EVEN: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Writes the gradients to BLOCK_N keys and values of some heads; to the queries too if these are all keys (WHOLE).

    Grid: images x groups of heads x blocks of keys. Loops over the queries and recomputes the weights, transposed.
    Moves key, value, dkey and dvalue once; query and grad once per block of keys, mostly out of the cache. WHOLE also
    moves out and dquery, once, and computes delta; otherwise attention_query_kernel has written it.
    """
    where, n = place(heads, keys, BLOCK_N, FORM)
    k = load_tile(key, where, n, keys, FORM)
    v = load_tile(value, where, n, keys, FORM)
    dk, dv = tl.zeros(k.shape, tl.float32), tl.zeros(k.shape, tl.float32)
    for start in range(0, tokens, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        row, mask = locate_rows(where, m, tokens, FORM)
        q = load_tile(query, where, m, tokens, FORM)
        shift, power = tl.load(lse + row, mask=mask, other=0.0) * LOG2_E, scale * LOG2_E
        p = tl.exp2(products(k, q) * power - tl.expand_dims(shift, -2))
        p = limited(p, n, keys, 0.0, -2, EVEN)
        g = load_tile(grad, where, m, tokens, FORM)
        if WHOLE:
            d = tl.sum(g.to(tl.float32) * load_tile(out, where, m, tokens, FORM).to(tl.float32), -1)
        else:
            d = tl.load(delta + row, mask=mask, other=0.0)
        dv += multiply(p, g, FORM)
        slope = p * (products(v, g) - tl.expand_dims(d, -2))
        dk += multiply(slope, q, FORM)
        if WHOLE:
            store_tile(dquery, multiply(transposed(slope), k, FORM) * scale, where, m, tokens, FORM)
    store_tile(dkey, dk * scale, where, n, keys, FORM)
    store_tile(dvalue, dv, where, n, keys, FORM)


def attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches the backward; the arguments are the op's."""
    results = empty(query), empty(key), empty(value)
    _write_gradients((grad, query, key, value, out), lse, scale, results)
    return results


def packed_attention_backward(grad: Tensor, packed: Tensor, out: Tensor, lse: Tensor, scale: float) -> Tensor:
    """Launches the backward, all of whose results are parts of one tensor; the arguments are the op's."""
    result = torch.empty_like(packed)
    _write_gradients((grad, *packed.unbind(), out), lse, scale, result.unbind())
    return result


def _write_gradients(inputs: tuple[Tensor, ...], lse: Tensor, scale: float, results: tuple[Tensor, ...]) -> None:
    """Writes the gradients from grad, query, key, value and out to the results, in any strides."""
    _, query, key, _, _ = inputs
    (batch, heads, tokens, _), keys = query.shape, key.shape[2]
    together, tile = configure("attention_backward", BACKWARD, BACKWARD_BY_WARPGROUPS, query, key)
    layout, tensors = form((*inputs, *results), together)
    groups, sizes = batch * triton.cdiv(heads, together), (heads, tokens, keys, scale, layout)
    even, whole = keys % tile["BLOCK_N"] == 0, keys <= tile["BLOCK_N"]
    delta = None if whole else torch.empty_like(lse)
    arguments, (dquery, *rest) = (*tensors[:5], lse.contiguous(), delta), tensors[5:]
    with torch.cuda.device_of(query):
        if not whole:
            grid = (groups * triton.cdiv(tokens, tile["BLOCK_M"]),)
            launch(attention_query_kernel, grid, *arguments, dquery, *sizes, EVEN=even, **tile)
        grid = (groups * triton.cdiv(keys, tile["BLOCK_N"]),)
        launch(attention_key_kernel, grid, *arguments, dquery, *rest, *sizes, EVEN=even, WHOLE=whole, **tile)
