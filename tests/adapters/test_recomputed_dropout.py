"""Dropout in networks that compute their layers again in the backward pass: the same masks, the same gradients."""

from functools import partial

import edm_model
import guided_diffusion_model
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from emfast.adapters import accelerate
from emfast.config import MStepConfig
from emfast.diffusion import Denoiser, EDMSchedule, VPSchedule
from emfast.em.m_step import Trainer, _Batch
from emfast.em.processes import Processes

diffusers = pytest.importorskip("diffusers")


class Checkpoint(torch.autograd.Function):
    """As guided-diffusion's, which computes again and does not ask the generator for its state."""

    @staticmethod
    def forward(ctx, function, length, *args):
        ctx.function, ctx.inputs, ctx.parameters = function, args[:length], args[length:]
        with torch.no_grad():
            return function(*ctx.inputs)

    @staticmethod
    def backward(ctx, gradient):
        inputs = [x.detach().requires_grad_() for x in ctx.inputs]
        with torch.enable_grad():
            y = ctx.function(*(x.view_as(x) for x in inputs))
        return None, None, *torch.autograd.grad(y, [*inputs, *ctx.parameters], gradient, allow_unused=True)


def guided(function, inputs, parameters, flag):
    return Checkpoint.apply(function, len(inputs), *inputs, *parameters) if flag else function(*inputs)


def guided_diffusion():
    options = {"image_size": 8, "in_channels": 3, "model_channels": 16, "out_channels": 3, "num_res_blocks": 1}
    options |= {"attention_resolutions": (2,), "channel_mult": (1, 2), "dropout": 0.3}
    network = guided_diffusion_model.UNetModel(**options)

    def recompute(kind):
        for module in network.modules():
            module.use_checkpoint = True

    return network, VPSchedule.linear(), recompute


def unet():
    options = {"block_out_channels": (16, 24), "layers_per_block": 1, "norm_num_groups": 8, "dropout": 0.3}
    options |= {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "sample_size": 8}
    network = diffusers.UNet2DModel(**options, up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    for module in network.modules():
        if isinstance(module, diffusers.models.attention_processor.Attention):
            module.to_out[1].p = 0.3

    def recompute(kind):
        function = partial(checkpoint, use_reentrant=kind == "reentrant")
        network.enable_gradient_checkpointing(function)

    return network, VPSchedule.linear(), recompute


def edm():
    """Drops by a function."""
    options = {"in_channels": 3, "out_channels": 3, "model_channels": 16, "channel_mult": (1, 2), "num_blocks": 1}
    network = edm_model.CLASSES["SongUNet"](**options, attn_resolutions=(4,), img_resolution=8, dropout=0.3)

    def recompute(kind):
        forward = network.forward
        function = partial(checkpoint, forward, use_reentrant=kind == "reentrant")
        network.forward = lambda x, t, labels: function(x.requires_grad_(), t, labels)

    return network, EDMSchedule(), recompute


def gradients(network, schedule):
    """The loss and the gradients of a step, as the M-step has them."""
    batch, generator = 4, torch.Generator().manual_seed(1)
    denoiser = Denoiser(network.train(), schedule, "edm" if isinstance(schedule, EDMSchedule) else None)
    trainer = Trainer(network, MStepConfig(batch_size=batch), "")
    step = _Batch(trainer, denoiser, torch.rand(batch, 3, 8, 8, generator=generator), 1, Processes(0, 1))
    return [step.gradients(*step.inputs(k)) for k in (2, 3)]


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("kind", ["reentrant", "by saved tensors"])
@pytest.mark.parametrize("family", [unet, guided_diffusion, edm])
def test_layers_computed_again_have_the_same_dropout(family, kind, accelerated, device, monkeypatch):
    torch.manual_seed(0)
    network, schedule, recompute = family()
    if accelerated:
        accelerate(network)
    network.to(device)  # whose threads, if any, have to know the context too
    usual = gradients(network, schedule)
    recompute(kind)
    if kind == "reentrant":
        monkeypatch.setattr(guided_diffusion_model, "checkpoint", guided)
    again = gradients(network, schedule)
    for expected, found in zip(usual, again, strict=True):
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert not torch.equal(usual[0][0], usual[1][0])
