"""The accelerated U-Nets of EDM, by a stand-in of the same structure."""

import copy
import io
import pickle

import edm_model as original
import pytest
import torch
from contracts import check_adapter, check_distributed, gradients_of
from torch import nn
from torch.utils.checkpoint import checkpoint

from emfast.adapters import accelerate, report, restore
from emfast.diffusion import Denoiser, EDMSchedule
from emfast.operators import Mask
from emfast.samplers import DPS

SMALL = {"in_channels": 3, "out_channels": 3, "model_channels": 16, "channel_mult": (1, 2), "num_blocks": 1}
SMALL |= {"attn_resolutions": (4,), "img_resolution": 8}
NCSN = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": (1, 3, 3, 1),
}
NETWORKS = {
    "ddpmpp": ("SongUNet", {}),
    "ncsnpp": ("SongUNet", NCSN),
    "residual encoder, box": ("SongUNet", {"encoder_type": "residual"}),
    "skip encoder and decoder": ("SongUNet", {"encoder_type": "skip", "decoder_type": "skip"}),
    "skip, long filter": ("SongUNet", NCSN | {"encoder_type": "skip", "decoder_type": "skip"}),
    "labels": ("SongUNet", {"label_dim": 4, "augment_dim": 9}),
    "odd channels": ("SongUNet", {"model_channels": 12, "channel_mult": (1, 3), "in_channels": 1}),
    "adm": ("DhariwalUNet", {"model_channels": 64, "channel_mult": (1, 2), "attn_resolutions": (8, 4)}),
    "adm, labels": ("DhariwalUNet", {"model_channels": 64, "label_dim": 4, "augment_dim": 9}),
}


def network(name="ddpmpp", **changes):
    """A small network."""
    torch.manual_seed(0)
    kind, options = NETWORKS[name]
    return original.CLASSES[kind](**(SMALL | options | changes)).eval()


def inputs(model, batch=2):
    """Images, noise labels and, if the network takes them, labels of class and augmentation."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(batch, next(iter(model.enc.values())).in_channels, 8, 8, generator=generator)
    labels = None if model.map_label is None else torch.eye(4)[:batch]
    augmentation = None if model.map_augment is None else torch.randn(batch, 9, generator=generator)
    return x, torch.linspace(-1, 0.5, batch), labels, augmentation


def preconditioned(kind="EDMPrecond", **changes):
    """A preconditioned network, called with images and standard deviations."""
    torch.manual_seed(0)
    options = {name: value for name, value in (SMALL | changes).items() if name not in ("in_channels", "out_channels")}
    return original.CLASSES[kind](img_channels=3, **options).eval()


def convert(model, dtype):
    """The parameters in a dtype, as EDM casts them where they are used; frequencies and filters stay."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_contract(name, device, way):
    model = network(name)
    check_adapter(model, inputs(model), device, convert=convert)
    assert report(accelerate(model))["left"] == {}


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "skip, long filter", "adm"])
def test_contract_in_training(name, device, way):
    """The path of weights that are new at every step."""
    model = network(name, dropout=0.0).train()
    check_adapter(model, inputs(model), device, dtypes=(torch.bfloat16,), convert=convert)


@pytest.mark.parametrize("kind", ["EDMPrecond", "VPPrecond"])
def test_inside_a_preconditioning(kind):
    """The wrapper, which computes in float32, stays as it is."""
    model = preconditioned(kind)
    x, sigma = inputs(model.model)[0], torch.tensor([0.3, 4.0])
    before = gradients_of(model, (x, sigma))
    for dtype, tolerance in ((None, 1e-4), (torch.bfloat16, 0.05)):
        assert type(accelerate(model, dtype=dtype)) is original.CLASSES[kind]
        assert report(model)["left"] == {}
        for ours, usual in zip(gradients_of(model, (x, sigma)), before, strict=True):
            torch.testing.assert_close(ours, usual, rtol=tolerance, atol=tolerance * usual.abs().max().item())
    for ours, usual in zip(gradients_of(restore(model), (x, sigma)), before, strict=True):
        assert torch.equal(ours, usual)


def test_what_is_accelerated_and_what_is_left_alone():
    found = report(accelerate(network("skip, long filter")))
    assert found["swapped"] == {"SongUNet": 1, "Conv2d": 6, "UNetBlock": 10, "GroupNorm": 2}
    model = network()
    model.enc["8x8_conv"] = nn.Conv2d(3, 16, 3, padding=1)
    assert report(accelerate(model))["left"] == {"Conv2d": 1}
    y = accelerate(model, dtype=torch.bfloat16)(*inputs(model))
    torch.testing.assert_close(y, restore(model)(*inputs(model)), atol=0.05, rtol=0.05)


def test_a_changed_copy_is_left_alone():
    """The same names elsewhere, or another computation under these names, are another network."""

    class Gated(original.UNetBlock):
        def forward(self, x, emb):
            return super().forward(x, emb) * self.gate

    model = network()
    block = model.dec["8x8_block0"]
    block.__class__, block.gate = Gated, 0.5
    Gated.__name__, Gated.__module__ = "UNetBlock", original.MODULE
    y = model(*inputs(model))
    assert report(accelerate(model))["swapped"]["UNetBlock"] == 9
    torch.testing.assert_close(model(*inputs(model)), y, rtol=1e-4, atol=1e-5)


def test_another_filter_of_two_taps_is_left_alone():
    model = network(resample_filter=(1, 2))
    y = model(*inputs(model))
    assert report(accelerate(model))["swapped"]["UNetBlock"] == 8
    torch.testing.assert_close(model(*inputs(model)), y, rtol=1e-4, atol=1e-5)


def test_classes_that_a_pickle_brought_along(monkeypatch):
    for kind in original.CLASSES.values():
        monkeypatch.setattr(kind, "__module__", "_imported_module_0123456789abcdef")
    assert report(accelerate(network()))["left"] == {}


def test_precision():
    model = network()
    accelerate(model, dtype=torch.bfloat16)
    assert model(*inputs(model)).dtype == torch.float32
    y = accelerate(model)(*inputs(model))
    with torch.autocast("cpu", torch.bfloat16):
        z = model(*inputs(model))
    torch.testing.assert_close(z.float(), y, atol=0.05, rtol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert restore(model)(*inputs(model)).dtype == z.dtype


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_half_precision_inside_a_preconditioning(dtype):
    """The wrapper asserts that the network returns float16 for float16."""
    model = preconditioned(use_fp16=True)
    x, sigma = inputs(model.model)[0], torch.tensor([0.3, 4.0])
    y = model(x, sigma)
    torch.testing.assert_close(accelerate(model, dtype=dtype)(x, sigma), y, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", ["ncsnpp", "adm"])
def test_copies(name):
    model = accelerate(network(name), dtype=torch.bfloat16)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)
    for twin in twins:
        assert torch.equal(twin(*inputs(model)), model(*inputs(model)))
        assert report(twin) == report(model)
        assert type(restore(twin)) is original.CLASSES[NETWORKS[name][0]]


@pytest.mark.parametrize("name", ["labels", "adm, labels"])
def test_training_with_dropout(name):
    """Of features, and of labels."""
    model = network(name, dropout=0.5, label_dropout=0.5).train()
    usual, ours = [], []
    for results in (usual, ours):
        for seed in range(4):
            torch.manual_seed(seed)
            results.append(model(*inputs(model)))
        accelerate(model)
    assert not torch.equal(ours[0], ours[1])
    torch.manual_seed(0)
    assert torch.equal(model(*inputs(model)), ours[0])
    assert torch.equal(model.eval()(*inputs(model)), model(*inputs(model)))
    calm = network(name, dropout=0.0, label_dropout=0.5).train()
    torch.manual_seed(3)
    y = calm(*inputs(calm))
    torch.manual_seed(3)
    torch.testing.assert_close(accelerate(calm)(*inputs(calm)), y, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing():
    model = accelerate(network("ncsnpp", dropout=0.5), dtype=torch.bfloat16).train()
    torch.manual_seed(1)
    usual = gradients_of(model, inputs(model))
    forward = model.forward
    model.forward = lambda *args: checkpoint(forward, *args, use_reentrant=False)
    torch.manual_seed(1)
    for a, b in zip(usual, gradients_of(model, inputs(model)), strict=True):
        assert torch.equal(a, b)


def test_distributed(tmp_path):
    model = accelerate(network("ncsnpp"), dtype=torch.bfloat16)
    check_distributed(model, inputs(model), tmp_path / "store")


@pytest.mark.parametrize("name", ["ncsnpp", "adm, labels"])
def test_compile(name):
    """Of no block more than there have to be: all kinds are in it, and tracing takes its time for each."""
    model = accelerate(network(name, num_blocks=0), dtype=torch.bfloat16).requires_grad_(False)
    x, *rest = inputs(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    leaf = x.clone().requires_grad_()
    y = compiled(leaf, *rest)
    torch.testing.assert_close(y, model(x, *rest), rtol=0.05, atol=0.05)
    assert torch.autograd.grad(y.sum(), leaf)[0].isfinite().all()


def test_a_replaced_part_is_used():
    """A wrapped layer (LoRA), one of torch's own and a hook take the module's own path."""
    model, twin = accelerate(network()), network()
    calls = []
    for each in (model, twin):
        each.enc["8x8_block0"].conv1 = nn.Sequential(each.enc["8x8_block0"].conv1)
        torch.manual_seed(0)
        each.enc["4x4_block0"].conv1 = nn.Conv2d(32, 32, 3, padding=1)
        each.dec["4x4_in0"].qkv.register_forward_hook(lambda *_: calls.append(1))
        each.dec["8x8_block0"].register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[1]))
        each.dec["8x8_aux_norm"].register_forward_hook(lambda *_: calls.append(2))
    torch.testing.assert_close(model(*inputs(model)), twin(*inputs(model)), rtol=1e-4, atol=1e-5)
    assert calls == [1, 48, 2] * 2


def test_posterior_sampling():
    """DPS on the preconditioned network ("x0"), and on the raw one, which emfast preconditions ("edm")."""
    model = preconditioned(model_type="DhariwalUNet", model_channels=64)
    operator, ids = Mask(missing=0.5), torch.arange(2)
    y = operator.observe(torch.rand(2, 3, 8, 8) * 2 - 1, 0.05, ids=ids)
    schedule = EDMSchedule(sigma_min=0.01, sigma_max=10.0)

    def restored(denoiser):
        return DPS(steps=3)(denoiser, y, operator, sigma=0.05, ids=ids, seed=0)

    whole, raw = Denoiser(model, schedule), Denoiser(model.model, schedule, "edm")
    before = restored(whole)
    assert before.isfinite().all()
    torch.testing.assert_close(restored(raw), before, rtol=1e-3, atol=1e-3)
    for dtype, tolerance in ((None, 1e-3), (torch.bfloat16, 0.1)):
        accelerate(model, dtype=dtype)
        for denoiser in (whole, raw):
            torch.testing.assert_close(restored(denoiser), before, rtol=tolerance, atol=tolerance)
