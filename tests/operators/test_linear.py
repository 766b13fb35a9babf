"""Plain functions as operators."""

from dataclasses import dataclass

import pytest
import torch
from contracts import Gaussian, check_operator
from torch import nn
from torch.nn import functional

from emfast import data, em
from emfast.diffusion import EDMSchedule
from emfast.operators import GaussianBlur, Linear, as_operator
from emfast.samplers import MMPS, data_misfit

KERNEL = torch.tensor([[[[0.0, 0.2, 0.0], [0.1, 0.4, 0.1], [0.0, 0.2, 0.0]]]], dtype=torch.float64)
MATRIX = torch.randn(5, 72, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def reflected(x):
    """A blur with reflection at the edges: it is not its own transpose, though its kernel is symmetric."""
    y = functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="reflect").flatten(0, 1)[:, None], KERNEL.to(x.dtype))
    return y.reshape(x.shape)


def projected(x):
    return x.flatten(2) @ MATRIX.to(x.dtype).T


def detached(x):
    return torch.from_numpy(2 * x.detach().numpy())


FUNCTIONS = {
    "as large as the images": (reflected, None),
    "smaller": (lambda x: x[..., ::2, ::3], None),
    "no images": (projected, None),
    "of one dimension": (lambda x: x.flatten(1)[:, :7], None),
    "zero": (lambda x: 0 * x, None),
    "with an adjoint": (projected, lambda y: (y @ MATRIX.to(y.dtype)).reshape(len(y), -1, 8, 9)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(1, 8, 9), (3, 8, 9)])
def test_contract(name, shape):
    check_operator(Linear(FUNCTIONS[name][0], shape, FUNCTIONS[name][1]), shape)


def test_a_module_that_takes_float32_alone_keeps_its_weights_out_of_it():
    layer = nn.Conv2d(1, 2, 3, stride=2, bias=False)
    operator = Linear(layer, shape=(1, 8, 8))
    x = torch.randn(2, 1, 8, 8)
    y = operator.observe(x)
    assert torch.equal(y, layer(x))
    torch.testing.assert_close((y.double() ** 2).sum(), (x.double() * operator.adjoint(y.detach(), {})).sum())
    assert layer.weight.grad is None


def test_a_function_without_a_hash_is_tried_once_as_any_other():
    @dataclass
    class Scaled:
        factor: float

        def __call__(self, x):
            return self.factor * x

    y, function = torch.ones(2, 1, 4, 4), Scaled(2.0)
    operator = as_operator(function, y, "test")
    assert as_operator(function, y, "test") is operator
    assert as_operator(Scaled(2.0), y, "test") is not operator
    assert torch.equal(operator.observe(y), 2 * y)


def test_inference_mode_is_no_fault_of_the_function():
    x = torch.randn(2, 1, 8, 9, dtype=torch.float64)
    expected = Linear(projected, shape=(1, 8, 9))
    y = expected.observe(x)
    with torch.inference_mode():
        operator = Linear(projected, shape=(1, 8, 9))
        assert torch.equal(operator.observe(x), y)
        assert torch.equal(operator.adjoint(y.clone(), {}), expected.adjoint(y, {}))


def test_the_adjoint_can_be_differentiated_itself():
    operator = Linear(projected, shape=(1, 8, 9))
    y = torch.randn(2, 1, 5, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 1, 8, 9, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((operator.adjoint(y, {}) * x).sum(), y)
    torch.testing.assert_close(gradient, projected(x))


@pytest.mark.parametrize(
    ("function", "adjoint", "words"),
    [
        (lambda x: x + 1, None, ["<lambda>", "linear", "Leave offsets"]),
        (torch.relu, None, ["relu", "linear"]),
        (lambda x: x - x.mean(0, keepdim=True), None, ["apart", "others in a batch than alone"]),
        (reflected, reflected, ["reflected", "<x, A^T y>", "Make adjoint the transpose"]),
        (detached, None, ["detached", "differentiable", "give adjoint"]),
        (lambda x: x.sum(), None, ["to return a tensor (B, ...)"]),
        (lambda x: x.tolist(), None, ["to return a tensor (B, ...)", "list"]),
        (lambda x: x @ torch.ones(3, 3), None, ["to take images (2, 1, 8, 8)", "shape=(C, H, W)"]),
    ],
)
def test_what_is_no_linear_operator_is_told_at_the_first_use(function, adjoint, words):
    operator = Linear(function, shape=(1, 8, 8), adjoint=adjoint)
    for _ in range(2):  # and again
        with pytest.raises((ValueError, TypeError)) as error:
            operator.observe(torch.zeros(1, 1, 8, 8))
        assert all(word in str(error.value) for word in words), error.value
        assert str(error.value).startswith(("Linear: expected", getattr(function, "__name__", "")))


def test_what_is_no_function_or_shape():
    with pytest.raises(TypeError, match="Linear: expected function to be a function of images, got int"):
        Linear(3, shape=(1, 8, 8))
    with pytest.raises(ValueError, match=r"Linear: expected shape to be \(C, H, W\).*got \(8, 8\)"):
        Linear(reflected, shape=(8, 8))
    with pytest.raises(ValueError, match=r"expected the images of reflected to have shape .* got \(1, 9, 9\)"):
        Linear(reflected, shape=(1, 8, 8)).observe(torch.zeros(2, 1, 9, 9))


def test_it_is_tried_once():
    calls = []

    def function(x):
        calls.append(len(x))
        return 2 * x

    operator = Linear(function, shape=(1, 4, 4))
    operator.observe(torch.zeros(2, 1, 4, 4))
    tried = len(calls)
    operator.observe(torch.zeros(2, 1, 4, 4))
    assert len(calls) == tried + 1


def test_a_function_is_one_operator_for_all_calls():
    y = torch.zeros(2, 1, 8, 8)
    assert as_operator(reflected, y, "f") is as_operator(reflected, y[0], "f")
    assert as_operator(reflected, torch.zeros(2, 3, 8, 8), "f") is not as_operator(reflected, y, "f")
    blur = GaussianBlur()
    assert as_operator(blur, y, "f") is blur
    for bad in (3, GaussianBlur, None):
        with pytest.raises(TypeError, match="f: expected operator to be an emfast Operator, or a function of images"):
            as_operator(bad, y, "f")
    with pytest.raises(ValueError, match=r"Give operators.Linear\(function, shape=\(C, H, W\)\)"):
        as_operator(reflected, torch.zeros(2, 5), "f")


def test_em_takes_it(tmp_path):
    images = data.Images(torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    observations = em.Observations(Linear(projected_square, shape=(1, 8, 8)), images=images)
    assert observations.shape == (1, 8, 8)
    x = images[:]
    assert float(data_misfit(x, observations.read(torch.arange(3)), observations.operator).max()) < 1e-10


def projected_square(x):
    return x.flatten(2)[..., ::5]


def test_a_sampler_takes_the_function_itself():
    prior = Gaussian(EDMSchedule())
    linear, other = Linear(halved, Gaussian.shape), Linear(detached_half, Gaussian.shape, adjoint=detached_half)
    y = linear.observe(torch.rand(2, *Gaussian.shape, dtype=torch.float64), 0.1)
    x = MMPS(steps=20, clip=False)(prior.denoiser, y, linear, sigma=0.1)
    for operator in (halved, other):
        torch.testing.assert_close(MMPS(steps=20, clip=False)(prior.denoiser, y, operator, sigma=0.1), x)
    assert torch.equal(data_misfit(x, y, halved), data_misfit(x, y, linear))
    alone = MMPS(steps=20, clip=False)(prior.denoiser, y[0], halved, sigma=0.1)
    torch.testing.assert_close(alone, x[0])


def halved(x):
    return 0.5 * x


def detached_half(x):
    """One that is not of PyTorch."""
    return torch.from_numpy(0.5 * x.detach().numpy())


def test_a_complex_function():
    with pytest.raises(TypeError, match=r"fft_fft2 to return real numbers, .* real and imaginary parts as channels\.$"):
        Linear(torch.fft.fft2, (1, 8, 8)).observe(torch.zeros(2, 1, 8, 8))
