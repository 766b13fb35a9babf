"""The accelerated U-Nets of diffusers: the same numbers, and everything that people do with a model still works."""

import copy
import io

import pytest
import torch
from contracts import check_adapter, gradients_of

import emfast
from emfast.adapters import accelerate, report, restore

diffusers = pytest.importorskip("diffusers")

SMALL = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 24),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
CIFAR = SMALL | {
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
NETWORKS = {
    "small": SMALL,
    "cifar": CIFAR,
    "one head": SMALL | {"attention_head_dim": None},
    "scale shift": SMALL | {"resnet_time_scale_shift": "scale_shift"},
    "resnet resampling": SMALL | {"downsample_type": "resnet", "upsample_type": "resnet"},
    "odd channels": SMALL
    | {"block_out_channels": (9, 21), "norm_num_groups": 3, "attention_head_dim": 7, "mid_block_scale_factor": 2},
    "unknown blocks": SMALL
    | {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (32, 32),
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    },
}


def network(**changes):
    """A small U-Net, its zero-initialised parts included in the signal."""
    torch.manual_seed(0)
    return diffusers.UNet2DModel(**(SMALL | changes)).eval()


def inputs(model, batch=2):
    """Images, and one time for all."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, model.config.in_channels, 8, 8, generator=generator), torch.full((batch,), 7)


@pytest.mark.parametrize("name", NETWORKS)
def test_contract(name, device, way):
    model = network(**NETWORKS[name])
    check_adapter(model, inputs(model), device)


def test_what_is_left_alone_is_listed():
    assert report(accelerate(network()))["left"] == {}
    assert report(accelerate(network()))["swapped"]["ResnetBlock2D"] == 8
    assert "Conv2d" in report(accelerate(network(**NETWORKS["unknown blocks"])))["left"]
    other = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3))
    found = report(accelerate(other))
    assert (found["swapped"], found["left"]) == ({}, {"Conv2d": 1})
    assert "Sequential has no module of a class that is known, as UNet2DModel" in found["reasons"][""]


def test_precision(way):
    model = network()
    x, t = inputs(model)
    assert accelerate(model, dtype=torch.bfloat16)(x, t).sample.dtype == torch.float32
    accelerate(model)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x, t).sample
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), model(x, t).sample, atol=0.05, rtol=0.05)
    assert model.double()(x.double(), t).sample.dtype == torch.float64


def test_autograd_to_the_input_leaves_parameters_alone(way):
    model = accelerate(network(), dtype=torch.bfloat16)
    x, t = inputs(model)
    leaf = x.clone().requires_grad_()
    (whole,) = torch.autograd.grad(model(leaf, t).sample.sum(), leaf)
    model.requires_grad_(False)
    (frozen,) = torch.autograd.grad(model(leaf, t).sample.sum(), leaf)
    assert torch.equal(whole, frozen)
    assert all(p.grad is None for p in model.parameters())


def test_weights_may_change(way):
    """Every way to change a weight is seen, a write through .data included."""
    model, twin = accelerate(network()), network()
    x, t = inputs(model)
    with torch.no_grad():
        model(x, t)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.data.mul_(1.1)
            q.data.mul_(1.1)
        torch.testing.assert_close(model(x, t).sample, twin(x, t).sample, rtol=1e-4, atol=1e-5)
    for network_ in (model, twin):
        optimizer = torch.optim.AdamW(network_.parameters(), fused=True)
        network_(x, t).sample.square().sum().backward()
        optimizer.step()
    # Adam's first step is the sign of the gradient: where that is rounding, the two may differ
    torch.testing.assert_close(model(x, t).sample, twin(x, t).sample, rtol=1e-2, atol=1e-3)


def test_copies():
    model = accelerate(network(), dtype=torch.bfloat16)
    x, t = inputs(model)
    y = model(x, t).sample
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(twin(x, t).sample, y)
        assert report(twin) == report(model)
        assert all(p is not q for p, q in zip(twin.parameters(), model.parameters(), strict=True))


def test_save_pretrained(tmp_path):
    model = accelerate(network(), dtype=torch.bfloat16)
    x, t = inputs(model)
    model.save_pretrained(tmp_path)
    plain = diffusers.UNet2DModel.from_pretrained(tmp_path)
    assert torch.equal(accelerate(plain, dtype=torch.bfloat16)(x, t).sample, model(x, t).sample)
    assert torch.equal(restore(plain)(x, t).sample, network()(x, t).sample)


def test_training_with_dropout():
    model = accelerate(network(dropout=0.5)).train()
    x, t = inputs(model)
    assert not torch.equal(model(x, t).sample, model(x, t).sample)
    torch.manual_seed(1)
    first = model(x, t).sample
    torch.manual_seed(1)
    assert torch.equal(model(x, t).sample, first)
    assert torch.equal(model.eval()(x, t).sample, model(x, t).sample)


def test_gradient_checkpointing(way):
    model = accelerate(network(), dtype=torch.bfloat16).train()
    usual = gradients_of(model, inputs(model))
    model.enable_gradient_checkpointing()
    for a, b in zip(usual, gradients_of(model, inputs(model)), strict=True):
        assert torch.equal(a, b)


def test_compile(way):
    """With attention in the middle only: tracing takes its time for each block."""
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    model = accelerate(network(**kinds), dtype=torch.bfloat16).requires_grad_(False)
    x, t = inputs(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    leaf = x.clone().requires_grad_()
    y = compiled(leaf, t).sample
    torch.testing.assert_close(y, model(x, t).sample, rtol=0.05, atol=0.05)
    assert torch.autograd.grad(y.sum(), leaf)[0].isfinite().all()


def test_a_replaced_part_is_used():
    """A wrapped layer (LoRA), a hook and another attention processor take the module's own path."""
    model, twin = accelerate(network()), network()
    x, t = inputs(model)
    calls = []
    for each in (model, twin):
        resnet = each.mid_block.resnets[0]
        resnet.conv1 = torch.nn.Sequential(resnet.conv1)
        each.mid_block.resnets[1].norm1.register_forward_hook(lambda *_: calls.append(1))
        each.up_blocks[0].resnets[0].conv2 = torch.nn.Sequential(each.up_blocks[0].resnets[0].conv2)
    torch.testing.assert_close(model(x, t).sample, twin(x, t).sample, rtol=1e-4, atol=1e-5)
    assert len(calls) == 2


def unbiased(*names):
    """Takes the biases of some projections away."""
    return lambda attention: [attention.get_submodule(name).register_parameter("bias", None) for name in names]


PROJECTIONS = {
    "no bias": unbiased("to_q", "to_k", "to_v", "to_out.0"),
    "a query without a bias": unbiased("to_q"),
    "a key without a bias": unbiased("to_k"),
    "a layer that is not called": lambda attention: attention.to_out.append(torch.nn.Tanh()),
}


@pytest.mark.parametrize("change", PROJECTIONS)
def test_other_projections_of_attention(change):
    model, twin = accelerate(network()), network()
    for each in (model, twin):
        torch.nn.init.constant_(each.mid_block.attentions[0].to_v.bias, 0.3)
        PROJECTIONS[change](each.mid_block.attentions[0])
    x, t = inputs(model)
    torch.testing.assert_close(model(x, t).sample, twin(x, t).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_no_images(dtype, training):
    model = accelerate(network(block_out_channels=(16, 16)).train(training), dtype=dtype)
    x = torch.zeros(0, 1, 8, 8, requires_grad=True)
    y = model(x, torch.zeros(0, dtype=torch.long)).sample
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert not any(p.grad.any() for p in model.parameters())


def test_a_pipeline():
    plain, x = network(), torch.zeros(2, 1, 8, 8)
    pipeline = diffusers.DDPMPipeline(network(), diffusers.DDPMScheduler(10))
    unet = pipeline.unet
    assert accelerate(pipeline, dtype=torch.bfloat16) is pipeline
    assert pipeline.unet is unet
    assert report(pipeline) == report(accelerate(network()))
    torch.testing.assert_close(unet(x, 3).sample, plain(x, 3).sample, rtol=0.1, atol=0.1)
    assert restore(pipeline) is pipeline
    assert not report(pipeline)["swapped"]
    for function in (accelerate, restore, report):
        with pytest.raises(TypeError, match="or a pipeline with a unet, got DDPMScheduler"):
            function(diffusers.DDPMScheduler(10))


def test_errors():
    with pytest.raises(TypeError, match="accelerate: expected model"):
        accelerate("unet")
    with pytest.raises(TypeError, match="accelerate: expected dtype"):
        emfast.accelerate(network(), dtype=torch.int32)
    assert emfast.restore(network()) is not None
