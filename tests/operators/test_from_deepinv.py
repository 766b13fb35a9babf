"""The physics of deepinv as operators: stand-ins with its interface, and deepinv itself where it is installed."""

import importlib.util
import sys

import pytest
import torch
from contracts import Gaussian, check_operator
from torch import nn

from emfast.diffusion import VPSchedule
from emfast.operators import Given, Mask, from_deepinv
from emfast.samplers import DPS

SHAPE = (1, 8, 9)
MASKS = (torch.rand(12, 1, 8, 9, generator=torch.Generator().manual_seed(0)) > 0.5).to(torch.float64)


class Inpainting(nn.Module):
    """Decomposable: A = U diag(mask) V^T, with U = V = I. Parameters given to a call stay."""

    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)
        self.noise_model = nn.Dropout(1.0)  # must not be used

    def update_parameters(self, mask=None, **kwargs):
        if mask is not None:
            self.mask = mask.to(self.mask)

    def A(self, x, mask=None, **kwargs):
        self.update_parameters(mask=mask, **kwargs)
        return self.mask * x

    def A_adjoint(self, y, mask=None, **kwargs):
        self.update_parameters(mask=mask, **kwargs)
        return self.mask * y

    def U(self, x):
        return x

    V = U_adjoint = V_adjoint = U

    def prox_l2(self, z, y, gamma, **kwargs):
        return (self.A_adjoint(y) + z / gamma) / (self.mask**2 + 1 / gamma)

    def noise(self, x, **kwargs):
        return self.noise_model(x, **kwargs) * self.mask


class Function(nn.Module):
    """A physics made of functions, its observations smaller than the images; a torch.Generator inside."""

    def __init__(self):
        super().__init__()
        self.forw = lambda x, gain=1.0: gain * x[..., ::2]
        self.rng = torch.Generator()

    def clone(self):
        return Function()

    def A(self, x, **kwargs):
        return self.forw(x, **kwargs)

    def A_adjoint(self, y, gain=1.0):
        x = y.new_zeros(*y.shape[:-1], 9)
        x[..., ::2] = gain * y
        return x


def deepinv():
    """Returns deepinv, or skips the test.

    It imports torchvision, whose operators are missing beside a torch of another build: it needs their schemas only.
    """
    if importlib.util.find_spec("deepinv") is None:
        pytest.skip("deepinv is not installed")
    try:
        return importlib.import_module("deepinv")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name in [name for name in sys.modules if name.split(".")[0] in ("deepinv", "torchvision")]:
        del sys.modules[name]
    return importlib.import_module("deepinv")


@pytest.fixture(params=["Inpainting", "Function"])
def physics(request):
    return Inpainting(MASKS[:1]) if request.param == "Inpainting" else Function()


def test_contract(physics):
    check_operator(from_deepinv(physics), SHAPE)


def test_rows_are_given_by_name():
    check_operator(Given(from_deepinv(Inpainting(MASKS[:1])), {"mask": MASKS}), SHAPE)
    gain = torch.rand(12, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    check_operator(Given(from_deepinv(Function()), {"gain": gain}), SHAPE)


def test_samples_are_those_of_the_same_operator():
    prior = Gaussian(VPSchedule.linear())
    masks = MASKS[:5, :, :2, :3]
    own, theirs = Mask(mask=masks), Given(from_deepinv(Inpainting(masks[:1])), {"mask": masks})
    x = torch.randn(5, *Gaussian.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    y = own.observe(x, sigma=0.1)
    assert torch.equal(theirs.observe(x, sigma=0.1), y)
    sampler = DPS(steps=10)
    a, b = (sampler(prior.denoiser, y, operator, sigma=0.1) for operator in (own, theirs))
    torch.testing.assert_close(a, b)
    marked = torch.where(masks == 1, y, torch.nan)
    assert torch.equal(sampler(prior.denoiser, marked, theirs, sigma=0.1), b)


def test_noise_is_that_of_the_detector_whatever_the_mask_multiplies_with():
    mask = 2 * MASKS[:1]
    operator = from_deepinv(Inpainting(mask))
    check_operator(operator, SHAPE)
    y = operator.observe(torch.zeros(4, *SHAPE), sigma=0.1)
    assert torch.equal(y, Mask(mask=MASKS[:1]).observe(torch.zeros(4, *SHAPE), sigma=0.1))


def test_the_physics_itself_is_left_alone():
    physics = Inpainting(MASKS[:1])
    operator = Given(from_deepinv(physics), {"mask": MASKS})
    operator.observe(torch.randn(3, *SHAPE), sigma=0.1)
    assert torch.equal(physics.mask, MASKS[:1])
    assert isinstance(physics.noise_model, nn.Dropout)


def test_every_device_keeps_a_physics_in_its_place():
    """The graph of a GPU holds the address of what it reads."""
    operator, ids = from_deepinv(Inpainting(MASKS[:1])), torch.arange(1)
    operator.parameters(ids, SHAPE)
    mask = operator.physics.mask
    operator.parameters(ids.to("meta"), SHAPE)
    assert operator.physics.mask.is_meta
    operator.parameters(ids, SHAPE)
    assert operator.physics.mask is mask
    check_operator(operator, SHAPE)


def test_precision_is_that_of_the_physics():
    x = torch.randn(2, *SHAPE).to(torch.bfloat16)
    assert from_deepinv(Inpainting(MASKS[:1])).observe(x).dtype == torch.bfloat16


def test_sentences():
    class Nonlinear:
        def A(self, x):
            return x.square()

    with pytest.raises(TypeError, match=r"from_deepinv: expected physics to be linear, .* got Nonlinear"):
        from_deepinv(Nonlinear())
    operator = Given(from_deepinv(Inpainting(MASKS[:1])), {"masks": MASKS})
    with pytest.raises(ValueError, match="to be those of Inpainting, got masks"):
        operator.observe(torch.randn(3, *SHAPE))
    operator = Given(from_deepinv(Inpainting(MASKS[:1])), {"mask": MASKS[:3, 0]})
    with pytest.raises(ValueError, match=r"expected mask to have 4 axes as that of the physics, got \(3, "):
        operator.observe(torch.randn(3, 3, *SHAPE[1:]))


def test_deepinv_itself():
    physics = deepinv().physics
    generator = torch.Generator().manual_seed(3)
    kernel = torch.rand(1, 1, 3, 3, dtype=torch.float64, generator=generator)
    kernels = torch.rand(12, 1, 3, 3, dtype=torch.float64, generator=generator)
    for shape in ((1, 8, 9), (3, 8, 9)):
        inpainting = physics.Inpainting(shape, mask=0.4, rng=torch.Generator().manual_seed(0)).double()
        check_operator(from_deepinv(inpainting), shape)
        check_operator(Given(from_deepinv(inpainting), {"mask": MASKS}), shape)
        check_operator(Given(from_deepinv(physics.Inpainting(shape).double()), {"mask": MASKS}), shape)
        blur = physics.BlurFFT(shape, filter=kernel / kernel.sum())
        check_operator(from_deepinv(blur), shape)
        check_operator(Given(from_deepinv(blur), {"filter": kernels}), shape)
        check_operator(from_deepinv(physics.Blur(kernel, padding="circular")), shape)
        check_operator(from_deepinv(physics.Downsampling((shape[0], 8, 8), "gaussian", 2).double()), (shape[0], 8, 8))
    check_operator(from_deepinv(physics.MRI(mask=MASKS[0], img_size=(2, 8, 9)).double()), (2, 8, 9))
    noisy = physics.Inpainting(SHAPE, mask=MASKS[0], noise_model=physics.GaussianNoise(5.0))
    x = torch.randn(4, *SHAPE)
    assert torch.equal(from_deepinv(noisy).observe(x, sigma=0.2), Mask(mask=MASKS[0]).observe(x, sigma=0.2))
    with pytest.raises(TypeError, match="to be linear"):
        from_deepinv(physics.Haze())
