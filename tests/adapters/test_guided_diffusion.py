"""The accelerated U-Net of guided-diffusion and DPS, by a stand-in of the same structure."""

import copy
import pickle

import guided_diffusion_model as original
import pytest
import torch
from contracts import check_adapter, check_distributed, gradients_of
from torch import nn

from emfast.adapters import accelerate, report, restore
from emfast.diffusion import Denoiser, VPSchedule
from emfast.operators import Mask
from emfast.samplers import DPS

SMALL = {
    "image_size": 8,
    "in_channels": 3,
    "model_channels": 16,
    "out_channels": 3,
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
    "channel_mult": (1, 2),
}
ADM = {"use_scale_shift_norm": True, "resblock_updown": True, "num_head_channels": 8}
NETWORKS = {
    "small": {},
    "32 groups": {"model_channels": 32},
    "adm": ADM,
    "new order": ADM | {"use_new_attention_order": True},
    "labels, learned variance": ADM | {"num_classes": 5, "out_channels": 6},
    "heads": {"num_heads": 4, "num_heads_upsample": 2, "use_scale_shift_norm": True},
    "heads, new order": {"num_heads": 4, "use_new_attention_order": True, "resblock_updown": True},
    "resampling without convolution": {"conv_resample": False},
    "odd channels": {"model_channels": 12, "channel_mult": (1, 1.75), "num_heads": 3},
    "checkpointing": ADM | {"use_checkpoint": True},
}


def network(**changes):
    """A small network."""
    torch.manual_seed(0)
    return original.UNetModel(**(SMALL | changes)).eval()


def inputs(model, batch=2):
    """Images, times and, if there are classes, labels."""
    x = torch.randn(batch, model.in_channels, 8, 8, generator=torch.Generator().manual_seed(2))
    labels = () if model.num_classes is None else (torch.arange(batch),)
    return x, torch.linspace(7, 700, batch), *labels


def convert(model, dtype):
    """The network in a dtype: all of it in float64, which the original cannot be, else its torso, as `use_fp16`."""
    if dtype == torch.float64:
        model.double()
        model.time_embed.register_forward_pre_hook(lambda _, args: (args[0].double(),))
        for module in model.modules():
            if isinstance(module, original.GroupNorm32):
                module.__class__ = nn.GroupNorm
    elif dtype != torch.float32:
        model.convert_to_fp16(dtype)
    model.dtype = dtype
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_contract(name, device, way):
    model = network(**NETWORKS[name])
    check_adapter(model, inputs(model), device, convert=convert)
    assert report(accelerate(model))["left"] == {}


def test_recomputing_without_dropout_asks_no_generator(monkeypatch):
    """The graph of a GPU cannot hold that."""
    model = accelerate(network(**NETWORKS["checkpointing"]))
    monkeypatch.setattr(torch, "get_rng_state", None)
    gradients_of(model, inputs(model))


@pytest.mark.parametrize("name", ["small", "adm", "heads", "checkpointing"])
def test_contract_in_training(name, device, way):
    """The path of weights that are new at every step."""
    model = network(**NETWORKS[name]).train()
    check_adapter(model, inputs(model), device, dtypes=(torch.bfloat16,), convert=convert)


def test_a_wide_skip_connection(device, way):
    """A residual block may have a 3 x 3 convolution there, though no network of the original does."""
    model = network()
    model.output_blocks[0][0] = original.ResBlock(64, 64, 0.0, 32, use_conv=True)
    check_adapter(model, inputs(model), device, convert=convert)


def test_what_is_accelerated_and_what_is_left_alone():
    found = report(accelerate(network(**ADM)))
    assert found["swapped"] == {
        "UNetModel": 1,
        "Conv2d": 2,
        "ResBlock": 10,
        "AttentionBlock": 4,
        "GroupNorm32": 1,
    }
    model = network()
    model.middle_block[1] = nn.Conv2d(32, 32, 1)
    assert report(accelerate(model))["left"] == {"Conv2d": 1}
    x, *rest = inputs(model)
    y = accelerate(model, dtype=torch.bfloat16)(x, *rest)
    torch.testing.assert_close(y, restore(model)(x, *rest), atol=0.05, rtol=0.05)


def test_a_changed_copy_is_left_alone():
    """The same names elsewhere, or another computation under these names, are another network."""

    class Gated(original.ResBlock):
        def _forward(self, x, emb):
            return super()._forward(x, emb) * self.gate

    model = network()
    block = model.middle_block[0]
    block.__class__, block.gate = Gated, 0.5
    Gated.__name__ = "ResBlock"
    Gated.__module__ = original.ResBlock.__module__
    y = model(*inputs(model))
    assert report(accelerate(model))["swapped"]["ResBlock"] == 7
    torch.testing.assert_close(model(*inputs(model)), y, rtol=1e-4, atol=1e-5)
    Gated.__module__ = "elsewhere"
    assert report(accelerate(model))["swapped"]["ResBlock"] == 7


def test_another_time_embedding_is_kept(monkeypatch):
    monkeypatch.setattr(original, "timestep_embedding", lambda t, dim: torch.outer(t.float(), torch.ones(dim)) / 1000)
    model = network()
    y = model(*inputs(model))
    assert "UNetModel" not in report(accelerate(model))["swapped"]
    torch.testing.assert_close(model(*inputs(model)), y, rtol=1e-4, atol=1e-5)


def test_precision():
    model = network(**ADM)
    x, t = inputs(model)
    y = model(x, t)
    assert accelerate(model, dtype=torch.bfloat16)(x, t).dtype == torch.float32
    accelerate(model)
    with torch.autocast("cpu", torch.bfloat16):
        z = model(x, t)
    torch.testing.assert_close(z.float(), y, atol=0.05, rtol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert restore(model)(x, t).dtype == z.dtype


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_torso_in_half_precision(dtype):
    """`use_fp16` and `convert_to_fp16`: parameters keep their dtypes, and so do the output and all gradients."""
    model = network(**ADM, use_fp16=True)
    model.convert_to_fp16()
    usual = gradients_of(model, inputs(model))
    ours = gradients_of(accelerate(model, dtype=dtype), inputs(model))
    assert report(model)["left"] == {}
    for a, b in zip(ours, usual, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05 * b.abs().max().item())


def test_copies():
    model = accelerate(network(**ADM), dtype=torch.bfloat16)
    x, t = inputs(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x, t), model(x, t))
        assert report(twin) == report(model)
        assert type(restore(twin)) is original.UNetModel


def test_training_with_dropout():
    model = accelerate(network(dropout=0.5)).train()
    x, t = inputs(model)
    assert not torch.equal(model(x, t), model(x, t))
    torch.manual_seed(1)
    first = model(x, t)
    torch.manual_seed(1)
    assert torch.equal(model(x, t), first)
    assert torch.equal(model.eval()(x, t), model(x, t))


def test_gradient_checkpointing():
    model = accelerate(network(**ADM, dropout=0.5), dtype=torch.bfloat16).train()
    torch.manual_seed(1)
    usual = gradients_of(model, inputs(model))
    for module in model.modules():
        module.use_checkpoint = True
    torch.manual_seed(1)
    for a, b in zip(usual, gradients_of(model, inputs(model)), strict=True):
        assert torch.equal(a, b)


def test_distributed(tmp_path):
    model = accelerate(network(**ADM), dtype=torch.bfloat16)
    check_distributed(model, inputs(model), tmp_path / "store")


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_compile(dtype):
    """Of no block more than there have to be: all kinds are in it, and tracing takes its time for each."""
    model = accelerate(network(**ADM, num_res_blocks=0), dtype=dtype).requires_grad_(False)
    x, t = inputs(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    leaf = x.clone().requires_grad_()
    y = compiled(leaf, t)
    torch.testing.assert_close(y, model(x, t), rtol=0.05, atol=0.05)
    assert torch.autograd.grad(y.sum(), leaf)[0].isfinite().all()


def test_a_replaced_part_is_used():
    """A wrapped layer (LoRA) and a hook take the module's own path."""
    model, twin = accelerate(network(**ADM)), network(**ADM)
    x, t = inputs(model)
    calls = []
    for each in (model, twin):
        each.middle_block[0].in_layers[2] = nn.Sequential(each.middle_block[0].in_layers[2])
        each.middle_block[1].qkv = nn.Sequential(each.middle_block[1].qkv)
        each.middle_block[2].out_layers[0].register_forward_hook(lambda *_: calls.append(1))
        each.output_blocks[0][0].register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[1]))
    torch.testing.assert_close(model(x, t), twin(x, t), rtol=1e-4, atol=1e-5)
    assert calls == [1, 64] * 2


def test_labels_are_asked_for():
    model = accelerate(network(num_classes=5))
    with pytest.raises((TypeError, AssertionError)):
        model(*inputs(model)[:2])


def test_super_resolution():
    """Its own forward calls the U-Net's: only the modules inside are accelerated."""
    torch.manual_seed(0)
    model = original.SuperResModel(**(SMALL | ADM)).eval()
    x = torch.randn(2, 3, 8, 8)
    y = model(x, torch.tensor([1, 9]), low_res=x)
    assert report(accelerate(model))["left"] == {}
    assert type(model) is original.SuperResModel
    torch.testing.assert_close(model(x, torch.tensor([1, 9]), low_res=x), y, rtol=1e-4, atol=1e-5)
    half = accelerate(model, dtype=torch.bfloat16)(x, torch.tensor([1, 9]), low_res=x)
    torch.testing.assert_close(half, y, rtol=0.05, atol=0.05)


def test_posterior_sampling_with_a_learned_variance():
    """DPS on a network of twice as many output channels: the images are those without emfast, and without variances."""
    model = network(**ADM, out_channels=6)
    operator, ids = Mask(missing=0.5), torch.arange(2)
    y = operator.observe(torch.rand(2, 3, 8, 8) * 2 - 1, 0.05, ids=ids)

    def restored(network):
        denoiser = Denoiser(network, VPSchedule.linear(1000))
        return DPS(steps=3)(denoiser, y, operator, sigma=0.05, ids=ids, seed=0)

    before = restored(model)
    torch.testing.assert_close(restored(accelerate(model)), before, rtol=1e-3, atol=1e-3)
    half = restored(accelerate(model, dtype=torch.bfloat16))
    assert (half - before).abs().median() < 0.03  # rounding is magnified 150 times at first: some pixels clip elsewhere
    last, means = restore(model).out[2], nn.Conv2d(16, 3, 3, padding=1)
    means.load_state_dict({name: value[:3] for name, value in last.state_dict().items()})
    model.out[2] = means
    torch.testing.assert_close(restored(accelerate(model)), before, rtol=1e-3, atol=1e-3)
