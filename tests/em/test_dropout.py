"""Dropout of the M-step: its masks belong to the layer, the step and the image, however often a layer is computed."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from emfast.em.dropout import Dropout

STEP = torch.tensor(5)


def dropout(network, place, seed=3, step=STEP):
    return Dropout(network, torch.as_tensor(place), seed, step)


@pytest.mark.parametrize("layer", [nn.Dropout(0.2), nn.Dropout2d(0.2)])
def test_dropout_keeps_its_share_and_the_mean(layer):
    x, place = torch.ones(64, 48, 8, 8), torch.arange(64)
    network = nn.ModuleList([layer, type(layer)(0.2)])
    with dropout(network, place):
        y, again, other = network[0](x), network[0](x), network[1](x)
    with dropout(network, place, step=STEP + 1):
        later = layer(x)
    with dropout(network, place[1::2]):
        assert torch.equal(layer(x[1::2]), y[1::2])
        assert torch.equal(layer.eval()(x), x)
    layer.train()
    assert set(y.unique().tolist()) == {0.0, 1.25}
    assert float(y.mean()) == pytest.approx(1, abs=0.03)
    assert torch.equal(y, again)
    for independent in (other, later):
        assert abs(float(((y - 1) * (independent - 1)).mean())) < 0.02
    assert (float(y.var((2, 3)).max()) == 0) == isinstance(layer, nn.Dropout2d)
    with dropout(network, place), pytest.raises(ValueError, match="drop features of 64 images"):
        layer(x[:63])


class Functions(nn.Module):
    """Drops in every other way."""

    def forward(self, x):
        q = x.flatten(2)
        a = F.scaled_dot_product_attention(q, q, q, dropout_p=0.5 if self.training else 0.0)
        y = F.dropout(x, 0.5, self.training), F.dropout(x, training=self.training)
        z = x.clone()
        F.dropout(z, 0.5, self.training, inplace=True)
        return torch.stack((*y, z, a.reshape(x.shape), F.dropout(x, 1.0, self.training)))


def test_dropout_by_functions():
    network, x = Functions(), torch.rand(4, 8, 4, 8) + 1
    network = nn.ModuleList([network, Functions()])
    with dropout(network, range(4)):
        y, again, other = network[0](x), network[0](x), network[1](x)
    with dropout(network, range(4), step=STEP + 1):
        later = network[0](x)
    with dropout(network, [1, 3]):
        torch.testing.assert_close(network[0](x[[1, 3]]), y[:, [1, 3]])
    assert torch.equal(y, again)
    assert torch.equal(y[4], torch.zeros_like(x))
    masks = [x == 0 for x in (*y[:3], *other[:3], *later[:3])]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(masks, 2))
    assert not torch.equal(y[3], other[3])
    assert not torch.equal(y[3], later[3])
    with dropout(network, range(4)):
        assert torch.equal(network.eval()[0](x), network[0](x))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_drops_its_weights(causal):
    generator, options = torch.Generator().manual_seed(0), {"is_causal": causal, "scale": 0.3, "enable_gqa": True}
    q, k, v = (torch.randn(64, heads, 8, 4, generator=generator) for heads in (4, 2, 2))
    usual = F.scaled_dot_product_attention(q, k, v, **options)
    mean, network = torch.zeros_like(usual), Attention()
    for step in range(200):
        with dropout(network, range(64), step=torch.tensor(step)):
            y = network(q, k, v, dropout_p=0.2, **options)
            assert torch.equal(network(q, k, v, **options), usual)
        mean += y / 200
    assert 0.2 < float((y - usual).std()) < 1
    assert float((mean - usual).std()) < 0.06


class Attention(nn.Module):
    def forward(self, *args, **options):
        return F.scaled_dot_product_attention(*args, **options)


def test_dropout_outside_of_modules_is_refused_where_it_is_computed_again():
    class Network(nn.Module):
        def forward(self, x):
            return checkpoint(drop, x, use_reentrant=False).sum()

    drop, network, x = lambda x: F.dropout(x).square(), Network(), torch.ones(4, 2, requires_grad=True)
    with dropout(network, range(4)) as context:
        loss = network(x)
        with pytest.raises(ValueError, match="in a module where it is computed again"):
            context.backward(loss)
