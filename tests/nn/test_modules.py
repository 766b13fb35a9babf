"""The building blocks for networks of one's own, against the same in torch's modules."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import emfast

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "own_network.py"


def gradients(function, *leaves):
    """The values and the gradients of the sum of squares."""
    y = function()
    return [y, *torch.autograd.grad(y.square().sum(), leaves)]


@pytest.mark.parametrize("scaled", [False, True])
def test_group_norm_silu(scaled):
    module, x = emfast.nn.GroupNormSiLU(2, 8, scaled=scaled), torch.randn(3, 8, 5, 4)
    nn.init.normal_(module.weight)
    first, second, embedding = x[:, :4].clone(), x[:, 4:].clone(), torch.randn(3, 16 if scaled else 8)
    leaves = [t.requires_grad_() for t in (first, second, embedding, *module.parameters())]

    def native():
        x = torch.cat((first, second), 1)
        if not scaled:
            return F.silu(F.group_norm(x + embedding[:, :, None, None], 2, module.weight, module.bias))
        s, t = embedding[:, :, None, None].chunk(2, 1)
        return F.silu(F.group_norm(x, 2, module.weight, module.bias) * (1 + s) + t)

    found = gradients(lambda: module((first, second), embedding), *leaves)
    for k, n in zip(found, gradients(native, *leaves), strict=True):
        torch.testing.assert_close(k, n, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_self_attention(training):
    module, x = emfast.nn.SelfAttention2d(8, heads=2, groups=4).train(training), torch.randn(2, 8, 3, 5)
    leaves = [x.requires_grad_(), *module.parameters()]

    def native():
        q, k, v = module.qkv(module.norm(x).flatten(2).mT).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + module.out(y).mT.reshape(x.shape)

    for k, n in zip(gradients(lambda: module(x), *leaves), gradients(native, *leaves), strict=True):
        torch.testing.assert_close(k, n, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_convolution_of_two_inputs_and_weights_with_all_that_is_added(upsample, training, way):
    weights = [torch.randn(8, 32, 3, 3), torch.randn(16, 32, 3, 3)]
    biases = [torch.randn(8), torch.randn(16)]
    xs, size = [torch.randn(2, 16, 4, 6), torch.randn(2, 16, 4, 6)], (8, 12) if upsample else (4, 6)
    residual = torch.randn(2, 24, *size)
    leaves = [t.requires_grad_() for t in (*xs, *weights, *biases, residual)]
    options = {"residual": residual, "scale": 0.5, "padding": 1, "upsample": upsample, "training": training}

    def native():
        x = torch.cat(xs, 1)
        x = F.interpolate(x, scale_factor=2.0) if upsample else x
        return (F.conv2d(x, torch.cat(weights), torch.cat(biases), padding=1) + residual) / 2

    found = gradients(lambda: emfast.nn.convolution(xs, weights, biases, **options), *leaves)
    for k, n in zip(found, gradients(native, *leaves), strict=True):
        torch.testing.assert_close(k, n, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("training", [False, True])
def test_rows_that_are_interleaved_over_several_weights(training, way):
    weights, biases = [torch.randn(3, 8), torch.randn(6, 8)], [torch.randn(3), torch.randn(6)]
    x = torch.randn(2, 8, 4, 5)
    leaves = [t.requires_grad_() for t in (x, *weights, *biases)]

    def native():
        w, b = (torch.cat(ts).unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1) for ts in (weights, biases))
        return F.conv2d(x, w[:, :, None, None], b)

    found = gradients(lambda: emfast.nn.convolution(x, weights, biases, interleaved=3, training=training), *leaves)
    for k, n in zip(found, gradients(native, *leaves), strict=True):
        torch.testing.assert_close(k, n, rtol=1e-4, atol=1e-4)


def test_the_example():
    spec = importlib.util.spec_from_file_location("own_network", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    restored = example.main(count=2, steps=2)
    assert restored.shape == (2, 1, 16, 16)
    assert bool(restored.isfinite().all())
    network = copy.deepcopy(example.Network()).train()
    network(torch.randn(2, 1, 8, 8), torch.rand(2)).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
