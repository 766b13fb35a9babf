"""An operator that is not linear, or whose adjoint is another one's, is found before a run begins."""

import pytest
import torch
from torch.nn import functional

from emfast.data import Images
from emfast.em import Observations
from emfast.operators import Downsample, GaussianBlur, Given, Identity, Mask, MotionBlur, Operator, from_deepinv

IMAGES = Images(torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1)


class Made(Operator):
    """An operator of two functions."""

    def __init__(self, apply, adjoint):
        self.forth, self.back = apply, adjoint

    def apply(self, x, parameters):
        return self.forth(x)

    def adjoint(self, y, parameters):
        return self.back(y)


class Physics:
    """What deepinv's physics look like."""

    def __init__(self, apply, adjoint):
        self.A, self.A_adjoint = apply, adjoint


MATRIX = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
KERNEL = torch.tensor([[[[0.0, 0.2, 0.0], [0.1, 0.4, 0.1], [0.0, 0.2, 0.0]]]], dtype=torch.float64)


def reflected(x):
    """A blur with reflection at the edges: it is not its own transpose, though its kernel is symmetric."""
    return functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="reflect"), KERNEL.to(x.dtype))


@pytest.mark.parametrize(
    "operator",
    [
        Identity(),
        Mask(missing=0.6),
        Mask(box=7),
        Given(Mask(), {"mask": torch.arange(64 * 3).reshape(3, 8, 8) % 2}),
        GaussianBlur(size=5),
        MotionBlur(size=3),
        Downsample(2),
        Made(lambda x: 0 * x, lambda y: 0 * y),
        Made(lambda x: MATRIX @ x, lambda y: MATRIX.T @ y),  # takes nothing but float32
        Made(lambda x: (MATRIX @ x.float()).to(x), lambda y: (MATRIX.T @ y.float()).to(y)),  # float32 inside
        from_deepinv(Physics(lambda x: MATRIX.double() @ x.double(), lambda y: MATRIX.double().T @ y.double())),
    ],
)
def test_what_is_linear_passes(operator):
    assert Observations(operator, images=IMAGES).shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("apply", "adjoint", "words"),
    [
        (lambda x: MATRIX @ x, lambda y: MATRIX @ y, ["<x, A^T y>", "<A x, y> = "]),
        (lambda x: 2 * x, lambda y: y, ["<x, A^T y>", "<A x, y> = "]),
        (lambda x: x, lambda y: y * torch.nan, ["<x, A^T y>", "nan"]),
        (lambda x: x, lambda y: y.flip(-1), ["<x, A^T y>"]),
        (reflected, reflected, ["<x, A^T y>"]),
        (lambda x: x + 0.01, lambda y: y, ["A is to be linear"]),
        (lambda x: x.abs(), lambda y: y, ["A is to be linear"]),
        (lambda x: x.clamp(-1, 1), lambda y: y, ["A is to be linear"]),
        (lambda x: (127.5 * x).round() / 127.5, lambda y: y, ["A is to be linear"]),
        (lambda x: x + 1e-3 * torch.randn_like(x), lambda y: y, ["A is to be linear"]),
        (lambda x: x * torch.nan, lambda y: y, ["A is to be linear", "nan"]),
    ],
)
@pytest.mark.parametrize("deepinv", [False, True])
def test_what_is_not_is_named_with_two_numbers(apply, adjoint, words, deepinv):
    operator = from_deepinv(Physics(apply, adjoint)) if deepinv else Made(apply, adjoint)
    with pytest.raises(ValueError, match=r"^\w+: expected .*, got (nan|-?\d).*\.$") as error:
        Observations(operator, images=IMAGES)
    text = str(error.value)
    assert text.startswith("Physics:" if deepinv else "Made:")
    assert "\n" not in text
    assert all(word in text for word in words), text


class Rowless(Operator):
    """Masks (B, H, W), which a batch of as many images as channels broadcasts to the channels."""

    def parameters(self, ids, shape):
        masks = torch.rand(50, *shape[1:], generator=torch.Generator().manual_seed(0)) > 0.5
        return {"mask": masks[ids].float()}

    def apply(self, x, parameters):
        return parameters["mask"].to(x) * x

    adjoint = apply


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [2, 3, 20])
def test_images_that_mix_are_found(channels, count):
    with pytest.raises(ValueError, match=r"Rowless: expected A x of one image to .* give masks as \(B, 1, H, W\)"):
        Observations(Rowless(), y=torch.zeros(count, channels, 6, 6))
