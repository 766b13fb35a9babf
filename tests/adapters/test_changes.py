"""Every kind of change of every part of an accelerated network is followed, before and after `accelerate`.

The same change is made to the same part of every block of a class, in the plain network and in the accelerated one.
"""

import functools

import edm_model
import guided_diffusion_model
import pytest
import torch
from test_diffusers import SMALL as DIFFUSERS
from test_edm import NCSN
from test_edm import SMALL as EDM
from test_guided_diffusion import ADM
from test_guided_diffusion import SMALL as GUIDED
from torch import nn

from emfast.adapters import accelerate, report, restore
from emfast.adapters.swap import Swapped

diffusers = pytest.importorskip("diffusers")

FAMILIES = {
    "diffusers": lambda: diffusers.UNet2DModel(**DIFFUSERS),
    "diffusers, resampling blocks": lambda: diffusers.UNet2DModel(
        **DIFFUSERS, downsample_type="resnet", upsample_type="resnet", resnet_time_scale_shift="scale_shift"
    ),
    "guided-diffusion": lambda: guided_diffusion_model.UNetModel(**GUIDED),
    "adm": lambda: guided_diffusion_model.UNetModel(**(GUIDED | ADM)),
    "edm": lambda: edm_model.CLASSES["SongUNet"](**EDM),
    "ncsnpp": lambda: edm_model.CLASSES["SongUNet"](**(EDM | NCSN)),
}


class Scaled(nn.Module):
    """A layer with something behind it, as LoRA and its relatives have; or an always active dropout."""

    def __init__(self, inner=None):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 0.5 * (x if self.inner is None else self.inner(x))


def setting(**attributes):
    """Sets attributes, if the module has them."""

    def change(parent, name, module):
        if not all(hasattr(module, key) and getattr(module, key) != value for key, value in attributes.items()):
            return None
        before = {key: getattr(module, key) for key in attributes}
        module.__dict__.update(attributes)
        return lambda: module.__dict__.update(before)

    return change


def replacing(make):
    """Puts another module into the place of one."""

    def change(parent, name, module):
        if parent is None:
            return None
        parent._modules[name] = make(module)
        return lambda: parent._modules.__setitem__(name, module)

    return change


def hooking(register, hook):
    """Registers a hook."""
    return lambda parent, name, module: getattr(module, register)(hook).remove


def patching(method):
    """Replaces a method of one object."""

    def change(parent, name, module):
        if not hasattr(module, method):
            return None
        before = getattr(module, method)
        module.__dict__[method] = functools.wraps(before)(lambda *args, **kwargs: _halved(before(*args, **kwargs)))
        return lambda: module.__dict__.pop(method)

    return change


def _halved(output):
    return output * 0.5


def _halved_input(module, args):
    return (args[0] * 0.5, *args[1:])


ATTRIBUTES = {
    "circular padding": setting(padding_mode="circular"),
    "dilation": setting(dilation=(2, 2), padding=(2, 2)),
    "epsilon": setting(eps=0.5),
    "fewer groups": setting(num_groups=1),
    "scale": setting(output_scale_factor=3.0),
    "rescale": setting(rescale_output_factor=3.0),
    "no residual": setting(residual_connection=False),
    "skip scale": setting(skip_scale=2.0),
    "heads": setting(heads=1),
    "scale of attention": setting(scale_qk=False, scale=1.0),
}
REPLACEMENTS = {
    "a wrapped part": replacing(Scaled),
    "another part": replacing(lambda module: Scaled()),
}
HOOKS = {
    "hook": hooking("register_forward_hook", lambda module, args, output: output * 0.5),
    "hook before": hooking("register_forward_pre_hook", _halved_input),
}
PATCHES = {"forward": patching("forward"), "_conv_forward": patching("_conv_forward"), "_forward": patching("_forward")}
CHANGES = ATTRIBUTES | REPLACEMENTS | HOOKS | PATCHES
TRAINING = {"dropout of whole channels": replacing(lambda module: nn.Dropout2d(0.5))}


def targets(model):
    """For each class that is swapped and each part inside: (parent, name, part) in every module of that class."""
    found = {}
    for module in model.modules():
        if not isinstance(module, Swapped) or module.hands_on:
            continue
        for path, part in module.named_modules():
            if isinstance(part, nn.ModuleList | nn.ModuleDict):  # not called
                continue
            parent, _, name = path.rpartition(".")
            owner = module.get_submodule(parent) if path else None
            found.setdefault((type(module).__name__, path), []).append((owner, name, part))
    return found


@functools.cache
def networks(family):
    """A plain network, and the accelerated one of the same weights."""
    pair = []
    for _ in range(2):
        torch.manual_seed(0)
        pair.append(FAMILIES[family]().eval())
    return pair[0], accelerate(pair[1], compare=False)


def output(model):
    """What a network makes of two images."""
    torch.manual_seed(3)
    channels = next(weight.shape[1] for weight in model.parameters() if weight.dim() == 4)  # of the first convolution
    x = torch.randn(2, channels, 8, 8)
    arguments = (None,) if hasattr(model, "map_label") else ()
    with torch.no_grad():
        try:
            y = model(x, torch.tensor([3.0, 0.5]), *arguments)
        except (RuntimeError, TypeError, ValueError):  # a part that no longer fits: both fail
            return None
    return getattr(y, "sample", y)


@functools.cache
def expected(family, change):
    """What the plain network makes of two images with a change to each part in turn, and without any (None)."""
    plain, fast = networks(family)
    found = {None: output(plain)}
    names = {id(module): name for name, module in fast.named_modules()}
    for key, parts in targets(fast).items():
        undo = [CHANGES[change](*within(plain, names, part)) for part in parts]
        if any(undo):
            try:
                found[key] = output(plain)
            finally:
                for back in filter(None, reversed(undo)):
                    back()
    return found


def within(model, names, part):
    """The arguments of a change for the part of a network that stands where one of another stands."""
    parent, name, module = part
    owner = None if parent is None else model.get_submodule(names[id(parent)])
    return owner, name, model.get_submodule(names[id(module)])


def compared(family, change, before):
    """Makes a change to every part in turn, and compares; yields the parts whose change had an effect."""
    _, fast = networks(family)
    usual = expected(family, change)[None]
    names = {id(module): name for name, module in fast.named_modules()}

    for key, parts in targets(fast).items():
        if key not in expected(family, change):
            continue
        if before:
            restore(fast)
        undo = [CHANGES[change](*within(fast, names, part)) for part in parts]
        if before:
            accelerate(fast, compare=False)
        try:
            a, b = expected(family, change)[key], output(fast)
        finally:
            for back in filter(None, reversed(undo)):
                back()
        if before:
            accelerate(fast, compare=False)
        assert (a is None) == (b is None), key
        if a is not None:
            error = (a - b).abs().max() / a.abs().max()
            assert error < 1e-4, (key, error)
            if not torch.equal(a, usual):
                yield key
    assert torch.allclose(output(fast), usual, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_change_is_followed(family, change, before):
    effective = list(compared(family, change, before))
    if change not in ATTRIBUTES and change not in ("_conv_forward", "_forward"):
        assert len(effective) >= 5


@pytest.mark.parametrize("family", FAMILIES)
def test_report_says_why(family):
    _, fast = networks(family)
    assert report(fast)["reasons"] == {}
    (*_, (_, _, convolution)) = next(found for (_, path), found in targets(fast).items() if path in ("qkv", "to_q"))
    handle = convolution.register_forward_hook(lambda *_: None)
    (reason,) = report(fast)["reasons"].values()
    handle.remove()
    assert reason.endswith("has hooks")
    assert report(fast)["reasons"] == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_change_in_another_precision(family):
    """Features come in that precision; what is changed computes in its own."""
    plain, _ = networks(family)
    torch.manual_seed(0)
    half = accelerate(FAMILIES[family]().eval(), dtype=torch.bfloat16)
    undo = []
    for model in (plain, half):
        for module in model.modules():
            if isinstance(module, nn.GroupNorm) or type(module).__name__ == "GroupNorm":
                undo.append(module.register_forward_hook(lambda module, args, output: output * 0.5).remove)
    a, b = output(plain), output(half)
    for back in undo:
        back()
    assert (a - b).abs().max() < 0.05 * a.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_methods_of_classes_are_followed(family, monkeypatch):
    plain, fast = networks(family)
    kinds = {type(module) for module in plain.modules() if "forward" in vars(type(module))}
    for kind in sorted(kinds, key=str):
        before = kind.forward
        with monkeypatch.context() as patched:
            patched.setattr(
                kind, "forward", lambda self, *args, before=before, **kw: _scaled(before(self, *args, **kw))
            )
            a, b = output(plain), output(fast)
        assert (a - b).abs().max() < 1e-4 * a.abs().max(), kind


def _scaled(output):
    """Half of an output of any kind."""
    if isinstance(output, tuple):
        return tuple(map(_scaled, output))
    if not isinstance(output, torch.Tensor):
        output.sample = output.sample * 0.5
        return output
    return output * 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_of_all_modules_see_all_modules(family):
    seen = []
    counts = []
    for model in networks(family):
        handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(module))
        output(model)
        handle.remove()
        counts.append(len(seen))
        seen.clear()
    assert counts[0] == counts[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_may_be_written(family):
    """One input channel of one weight after the other (every third: all kinds come again), behind torch's back."""
    plain, fast = networks(family)
    weights = zip(plain.named_parameters(), fast.parameters(), strict=True)
    for (name, a), b in list(weights)[::3]:
        for weight in (a, b):
            weight.data[..., -1:].mul_(-3) if weight.dim() < 2 else weight.data[:, -1:].mul_(-3)
        x, y = output(plain), output(fast)
        for weight in (a, b):
            weight.data[..., -1:].div_(-3) if weight.dim() < 2 else weight.data[:, -1:].div_(-3)
        assert (x - y).abs().max() < 1e-4 * x.abs().max(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_of_another_kind(family):
    """In training, whole channels: what stands in the place of dropout is called, once, in its turn."""
    plain, fast = networks(family)
    found = [(m, n) for m in (plain, fast) for n, d in m.named_modules() if isinstance(d, nn.Dropout)]
    if not found:
        pytest.skip("dropout is a number here")
    before = [model.get_submodule(name) for model, name in found]
    outputs = []
    for model in (plain, fast):
        for owner, name in found:
            if owner is model and not name.endswith("to_out.1"):
                owner.set_submodule(name, nn.Dropout2d(0.5))
        outputs.append(output(model.train()))
        model.eval()
    for (model, name), dropout in zip(found, before, strict=True):
        model.set_submodule(name, dropout)
    assert (outputs[0] - outputs[1]).abs().max() < 1e-4 * outputs[0].abs().max()
