"""The measurement operators: linearity, adjoints, their parameters."""

import os

import numpy as np
import pytest
import torch
from contracts import check_operator

from emfast.operators import (
    Detector,
    Downsample,
    GaussianBlur,
    Given,
    Identity,
    Linear,
    Mask,
    MotionBlur,
    Operator,
    PoissonCounts,
)

OPERATORS = [
    Identity(),
    Mask(missing=0.6),
    Mask(mask=(torch.arange(12) % 2).reshape(12, 1, 1, 1).expand(12, 1, 8, 9)),  # some show nothing
    Mask(box=3),
    Mask(mask=(torch.arange(72).reshape(8, 9) % 3 > 0)),
    GaussianBlur(size=5, std=1.3),
    GaussianBlur(size=15, std=4.0),
    GaussianBlur(size=5, std=1.3, padding="circular"),
    GaussianBlur(size=1, std=1.0),
    MotionBlur(size=7),
    MotionBlur(size=1),
    MotionBlur(kernel=torch.rand(12, 3, 3, generator=torch.Generator().manual_seed(0))),
]


class Decimate(Operator):
    """Keeps every other pixel: a user's operator whose observations are smaller than the images."""

    def apply(self, x, parameters):
        return x[:, :, ::2, ::2]

    def adjoint(self, y, parameters):
        x = y.new_zeros(*y.shape[:2], 8, 9)
        x[:, :, ::2, ::2] = y
        return x


def negative(kind):
    """A user's subclass of an operator, whose A is minus that of the other."""

    class Negative(kind):
        def apply(self, x, parameters):
            return -super().apply(x, parameters)

        def adjoint(self, y, parameters):
            return -super().adjoint(y, parameters)

    return Negative


KINDS = [Mask, Identity, GaussianBlur, MotionBlur, Downsample]
OPTIONS = {Mask: {"missing": 0.5}, GaussianBlur: {"size": 3, "std": 0.5}, MotionBlur: {"size": 3}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_subclass_with_another_a_does_not_inherit_what_follows_from_that_of_the_first(kind):
    operator = negative(kind)(**OPTIONS.get(kind, {}))
    check_operator(operator, (1, 4, 6))
    check_operator(negative(type(operator))(**OPTIONS.get(kind, {})), (1, 4, 6))
    assert not operator.closed_form
    assert operator.gain({}) is None


def test_a_subclass_keeps_what_it_gives_and_what_was_written_for_any_a():
    class Recorded(Operator):
        """A base class without an A."""

        def project(self, y, parameters):
            return y.nan_to_num()

    class Halves(Recorded):
        def apply(self, x, parameters):
            return x / 2

        adjoint = apply

    class Both(negative(Mask)):
        closed_form = True

        def regularised_inverse(self, y, c, parameters, *, iterations=10):
            return -Mask.regularised_inverse(self, y, c, parameters)

    assert Halves.project is Recorded.project
    check_operator(Both(missing=0.5), (1, 4, 4))
    assert Both.closed_form
    assert type("Renamed", (Mask,), {}).misfit is Mask.misfit


@pytest.mark.parametrize("operator", [*OPERATORS, Decimate()], ids=lambda op: f"{type(op).__name__}{vars(op)}"[:60])
@pytest.mark.parametrize("shape", [(1, 8, 9), (3, 8, 9)])
def test_contract(operator, shape):
    check_operator(operator, shape)


@pytest.mark.parametrize("operator", [*OPERATORS, MotionBlur(size=17), Downsample()], ids=lambda op: type(op).__name__)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_and_none_at_all_is_none(operator, dtype):
    sides = (8, 9) if getattr(operator, "mask", None) is not None else (20, 18)
    x = torch.rand(3, 2, *sides, generator=torch.Generator().manual_seed(0)).to(dtype)
    c, y, exact = torch.tensor(0.1, dtype=torch.float64), operator.observe(x), operator.observe(x.double())
    parameters = operator.parameters(torch.arange(3), tuple(y.shape[1:]))
    wide = (exact, operator.adjoint(exact, parameters), operator.regularised_inverse(exact, c, parameters))
    half = (y, operator.adjoint(y, parameters), operator.regularised_inverse(y, c.to(dtype), parameters))
    for ours, theirs in zip(half, wide, strict=True):
        assert ours.dtype == dtype
        assert (ours - theirs).abs().max() <= 8 * torch.finfo(dtype).eps * theirs.abs().max()
    none = {name: value[:0] if len(value) == 3 else value for name, value in parameters.items()}
    for empty in (operator.observe(x[:0]), operator.regularised_inverse(y[:0], c, none)):
        assert empty.numel() == 0


def test_missing_probability_is_honoured():
    for missing in (0.0, 0.25, 0.9):
        mask = Mask(missing=missing).parameters(torch.arange(100), (3, 20, 20))["mask"]
        assert mask.shape == (100, 1, 20, 20)
        assert abs(float(mask.mean()) - (1 - missing)) < 5 * (missing * (1 - missing) / mask.numel()) ** 0.5 + 1e-9


def test_box_is_inside_and_moves():
    mask = Mask(box=3).parameters(torch.arange(1000), (1, 8, 9))["mask"]
    assert (mask.sum((1, 2, 3)) == 72 - 9).all()
    assert (mask.mean(0) < 1).all()  # every pixel is covered by some box


def test_masks_belong_to_id_and_seed():
    ids = torch.tensor([7, 3])
    a = Mask(missing=0.5).parameters(ids, (1, 8, 8))["mask"]
    assert torch.equal(a[1:], Mask(missing=0.5).parameters(ids[1:], (3, 8, 8))["mask"])
    assert not torch.equal(a, Mask(missing=0.5, seed=1).parameters(ids, (1, 8, 8))["mask"])


def test_missing_pixels_have_no_noise():
    x = torch.rand(4, 2, 6, 6)
    operator = Mask(missing=0.5)
    y = operator.observe(x, sigma=1.0)
    mask = operator.parameters(torch.arange(4), (2, 6, 6))["mask"].expand_as(y)
    assert (y[mask == 0] == 0).all()
    assert (y[mask == 1] != x[mask == 1]).any()


@pytest.mark.parametrize("sigma", ["0.1", None, torch.tensor(0.1), -1, float("nan")])
def test_noise_levels_that_are_none_are_refused(sigma):
    with pytest.raises((TypeError, ValueError), match=r"^observe: expected sigma to be "):
        Identity().observe(torch.zeros(1, 1, 2, 2), sigma)


def test_noise_level_and_repeatability():
    x = torch.zeros(50, 1, 20, 20)
    y = Identity().observe(x, sigma=0.3, seed=4)
    assert abs(float(y.std()) - 0.3) < 0.01
    assert torch.equal(y[10:12], Identity().observe(x[10:12], sigma=0.3, seed=4, ids=torch.tensor([10, 11])))
    assert not torch.equal(y, Identity().observe(x, sigma=0.3, seed=5))


@pytest.mark.parametrize("padding", ["reflect", "circular"])
def test_blur_is_a_padded_convolution(padding):
    x = torch.rand(2, 3, 11, 7, dtype=torch.float64)
    w = torch.exp(-0.5 * (torch.arange(-2, 3) / 1.3) ** 2).double()
    kernel = torch.outer(w, w) / w.sum() ** 2
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode=padding)
    expected = torch.nn.functional.conv2d(padded, kernel.expand(3, 1, 5, 5), groups=3)
    operator = GaussianBlur(size=5, std=1.3, padding=padding)
    found = operator.observe(x)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_a_blur_that_is_changed_is_another_one_at_once():
    operator = GaussianBlur(size=5, std=1.0)
    for options in ({"std": 1.0}, {"std": 2.0}, {"size": 3}, {"padding": "circular"}):
        vars(operator).update(options)
        check_operator(operator, (1, 8, 9))
        again, ids = GaussianBlur(operator.size, operator.std, operator.padding), torch.arange(2)
        for name, value in again.parameters(ids, (1, 8, 9)).items():
            assert torch.equal(operator.parameters(ids, (1, 8, 9))[name], value)


@pytest.mark.parametrize("factor", [2, 3])
def test_downsampling(factor):
    operator = Downsample(factor)
    check_operator(operator, (2, 6, 12))
    x = torch.rand(3, 2, 6, 12, dtype=torch.float64)
    blocks = x.reshape(3, 2, 6 // factor, factor, 12 // factor, factor).mean((3, 5))
    torch.testing.assert_close(operator.observe(x), blocks)
    torch.testing.assert_close(operator.apply(operator.adjoint(blocks, {}), {}), blocks / factor**2)


def test_motion_blur_is_a_circular_convolution():
    x = torch.rand(2, 3, 8, 9, dtype=torch.float64)
    kernel = torch.rand(2, 3, 3, dtype=torch.float64)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="circular")
    flipped = kernel.flip(1, 2)[:, None, None].expand(2, 3, 1, 3, 3)
    expected = [torch.nn.functional.conv2d(p[None], k, groups=3)[0] for p, k in zip(padded, flipped, strict=True)]
    torch.testing.assert_close(MotionBlur(kernel=kernel).observe(x), torch.stack(expected))


def test_random_motion_kernels():
    ids = torch.arange(50)
    kernel = MotionBlur(size=9).parameters(ids, (1, 16, 16))["kernel"]
    assert kernel.shape == (50, 1, 9, 9)
    assert (kernel >= 0).all()
    torch.testing.assert_close(kernel.sum((1, 2, 3)), torch.ones(50, dtype=torch.float64))
    assert torch.equal(kernel[7:8], MotionBlur(size=9).parameters(ids[7:8], (3, 20, 20))["kernel"])
    assert len({tuple(k.flatten().tolist()) for k in kernel}) == 50
    assert ((kernel > 0).sum((1, 2, 3)) >= 9).all()  # a path, not a point


def test_given_masks_without_channels():
    masks = torch.arange(5 * 16).reshape(5, 4, 4) % 3 == 0
    found = Given(Mask(), {"mask": masks}).parameters(torch.tensor([4, 1]), (3, 4, 4))["mask"]
    assert torch.equal(found, masks[[4, 1], None].float())


def test_given_masks(tmp_path):
    masks = (torch.rand(5, 1, 4, 4) > 0.5).float()
    np.save(tmp_path / "masks.npy", masks.numpy())
    ids = torch.tensor([4, 1])
    for operator in (Mask(mask=masks), Mask(mask=str(tmp_path / "masks.npy")), Given(Mask(), {"mask": masks})):
        assert torch.equal(operator.parameters(ids, (3, 4, 4))["mask"], masks[ids])


def test_masks_of_three_images_are_not_those_of_three_channels():
    masks = (torch.arange(3 * 16).reshape(3, 4, 4) % 5 > 1).float()
    x = torch.ones(3, 3, 4, 4)
    for given in (masks, masks[:, None], masks.bool(), masks.int()):
        y = Given(Mask(), {"mask": given}).observe(x)
        assert torch.equal(y, masks[:, None].expand(3, 3, 4, 4))
    for wrong in (masks, masks[None], masks[:, None].expand(3, 3, 4, 4), masks[:2, None]):
        with pytest.raises(ValueError, match=r"Mask: expected mask to have shape \(3 or 1, 1, 4, 4\)"):
            Mask().apply(x, {"mask": wrong})
    with pytest.raises(ValueError, match=r"images and observations to have shape \(B, C, H, W\), got \(3, 4, 4\)"):
        Mask(mask=masks[0]).apply(x[0], {"mask": masks[:1, None]})


@pytest.mark.parametrize("name", ["m.npy", "m.npz", "m.npz:mask", "m.h5", "big.npy", "m.NPY"])
def test_masks_in_files(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    mask = torch.arange(16).reshape(4, 4) % 3 > 0
    if name.endswith("h5"):
        h5py = pytest.importorskip("h5py", reason="h5py is not installed")
        with h5py.File(tmp_path / name, "w") as file:
            file["mask"] = mask.numpy()
    elif "npz" in name:
        np.savez(tmp_path / "m.npz", mask=mask.numpy(), other=np.ones(3))
    else:
        with (tmp_path / name).open("wb") as file:
            np.save(file, mask.numpy().astype(">f4" if name == "big.npy" else "?"))
    for source in (tmp_path / name, f"~/{name}"):
        assert torch.equal(Mask(mask=source).mask[0, 0], mask.float())


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: path.write_bytes(b"no"), "m.npy to be a whole array file"),
        (os.mkfifo, "m.npy to be a file or a folder, got a pipe"),
        (lambda path: np.save(path, np.array(["a"])), "m.npy:array to hold numbers"),
        (lambda path: np.save(path, np.ones((4, 4), np.complex64)), "mask to be real"),
        (lambda path: np.save(path, np.full((4, 4), 255, np.uint8)), "made of 0 and 1, got 255"),
        (lambda path: np.save(path, np.ones((3, 4, 4))), r"shape \(H, W\), \(1, H, W\) or \(N, 1, H, W\)"),
        (lambda path: None, "m.npy to exist"),
    ],
)
def test_files_that_are_no_masks(write, sentence, tmp_path):
    write(tmp_path / "m.npy")
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=sentence):
        Mask(mask=str(tmp_path / "m.npy"))


@pytest.mark.parametrize(("operator", "name"), [(Mask(missing=0.5), "mask"), (MotionBlur(3), "kernel")])
def test_a_name_that_the_operator_does_not_read_is_not_passed_over(operator, name):
    given = {name: torch.ones(2, 3, 3), "more": torch.ones(2, 1)}
    assert Given(operator, given).parameters(torch.arange(2), (1, 3, 3)).keys() == given.keys()
    kind = type(operator).__name__
    text = f"{kind}: expected what is given to be parameters that it reads, got {name}s. Name them {name}."
    with pytest.raises(ValueError, match=text):
        Given(operator, {f"{name}s": given[name]})


@pytest.mark.parametrize(
    ("operator", "name"),
    [
        *((operator, "mask") for operator in (Identity(), GaussianBlur(3), Downsample(2), PoissonCounts(4.0))),
        (Linear(lambda x: x, shape=(1, 4, 4)), "mask"),
        (GaussianBlur(3), "std"),
        (Identity(), "sigma"),
        (Mask(), "kernel"),
        (MotionBlur(3), "mask"),
    ],
)
def test_what_no_operator_of_ours_reads_is_refused(operator, name):
    given = {name: torch.ones(2, 1, 4, 4), **{read: torch.ones(2, 3, 3) for read in operator.reads}}
    kind = type(operator).__name__
    with pytest.raises(ValueError, match=f"^{kind}: expected what is given to be parameters that it reads, got {name}"):
        Given(operator, given)


def test_an_operator_of_a_user_reads_what_it_likes():
    class Sharp(Identity):
        def apply(self, x, parameters):
            return x * parameters["sigma"]

        def adjoint(self, y, parameters):
            return y * parameters["sigma"]

    given = {"sigma": torch.full((2, 1, 1, 1), 3.0)}
    for operator in (Given(Sharp(), given), Given(Given(Sharp(), given), given)):
        assert operator.observe(torch.ones(2, 1, 4, 4)).unique() == 3


def test_given_kernels():
    kernels = torch.rand(3, 5, 5)
    x = torch.rand(3, 3, 8, 8)
    expected = MotionBlur(kernel=kernels).observe(x)
    for given in (kernels, kernels[:, None], kernels.double()):
        torch.testing.assert_close(Given(MotionBlur(size=3), {"kernel": given}).observe(x), expected)
    for wrong in (torch.rand(3, 3, 5, 5), torch.rand(3, 4, 4), torch.rand(3, 5), torch.rand(3, 5, 5) * torch.nan):
        with pytest.raises(ValueError, match=r"^MotionBlur: expected "):
            Given(MotionBlur(), {"kernel": wrong})
    for size in (5, 17):  # above some size by Fourier transforms
        wide, kernel = torch.rand(3, 3, 32, 32), torch.rand(3, 3, size, size)
        for wrong in (kernel, kernel[:1], kernel[:2, :1], kernel[0]):
            with pytest.raises(ValueError, match=r"expected kernel .* \(3 or 1, 1, K, K\)"):
                MotionBlur().apply(wide, {"kernel": wrong})


@pytest.mark.parametrize("size", [9, 15, 17])
@pytest.mark.parametrize("method", ["apply", "adjoint", "misfit", "regularised_inverse"])
def test_given_kernels_larger_than_the_images(size, method):
    operator, x = Given(MotionBlur(3), {"kernel": torch.rand(2, size, size)}), torch.zeros(2, 1, 8, 12)
    parameters = operator.parameters(torch.arange(2), (1, 8, 12))
    more = {"misfit": (x,), "regularised_inverse": (torch.ones(()),)}.get(method, ())
    with pytest.raises(ValueError, match=r"MotionBlur: expected kernel to have sides <= 8, .* got (\d+) x \1"):
        getattr(operator, method)(x, *more, parameters)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Mask(missing=1.5), "missing to be a probability"),
        (lambda: Mask(missing=0.5, box=3), "one of missing, box and mask"),
        (lambda: Mask(mask=torch.full((4, 4), 0.5)), "made of 0 and 1"),
        (lambda: Mask(mask=torch.full((4, 4), 2)), "made of 0 and 1, got 2"),
        (lambda: Mask(mask=torch.full((4, 4), -1.0)), "made of 0 and 1, got -1"),
        (lambda: Mask(mask=torch.full((4, 4), torch.nan)), "made of 0 and 1, got nan"),
        (lambda: Mask(mask=torch.ones(4, 4, dtype=torch.complex64)), "mask to be real"),
        (lambda: Mask(mask=torch.zeros(4, 4)), "nothing is observed"),
        (lambda: Given(Mask(), {"mask": torch.full((2, 4, 4), 2)}), "made of 0 and 1, got 2"),
        (lambda: Given(Mask(), {"mask": torch.ones(4, 4)}), r"shape \(N, 1, H, W\) or \(N, H, W\)"),
        (lambda: Given(Mask(), {"mask": torch.ones(2, 3, 4, 4)}), "shared by the channels"),
        (lambda: Mask(missing=1.0), r"missing to be a probability in \[0, 1\)"),
        (lambda: Mask(missing=float("nan")), "missing to be a probability"),
        (lambda: Mask(box=4).observe(torch.zeros(1, 1, 4, 4)), "hides whole images"),
        (lambda: Mask(box=0), "box to be a whole number > 0"),
        (lambda: Mask(box=2.5), "box to be a whole number > 0"),
        (lambda: GaussianBlur(std=float("inf")), "std to be > 0 pixels and finite"),
        (lambda: MotionBlur(shake=float("inf")), "shake to be >= 0 and finite"),
        (lambda: MotionBlur(kernel=torch.full((3, 3), torch.nan)), "finite"),
        (lambda: Mask(mask=torch.ones(4)), "to have shape"),
        (lambda: Mask(mask=torch.ones(3, 4, 4)), "to have shape"),
        (lambda: Mask(mask=torch.ones(2, 3, 4, 4)), "shared by the channels"),
        (lambda: Mask(mask=torch.ones(3, 3)).observe(torch.zeros(1, 1, 4, 4)), "the size of the images, 4 x 4"),
        (lambda: Mask(mask=torch.ones(2, 1, 4, 4)).observe(torch.zeros(3, 1, 4, 4)), "a row for every observation"),
        (lambda: Mask(box=5).observe(torch.zeros(1, 1, 4, 9)), "box to be <= 4"),
        (lambda: Mask().observe(torch.zeros(1, 1, 4, 4)), "a mask to be given"),
        (lambda: Downsample(1), "factor to be 2 or more"),
        (lambda: Downsample(3).observe(torch.zeros(1, 1, 4, 6)), "to be multiples of 3"),
        (lambda: MotionBlur(size=4), "size to be odd"),
        (lambda: MotionBlur(size=9).observe(torch.zeros(1, 1, 4, 9)), "size to be <= 4"),
        (lambda: MotionBlur(kernel=torch.ones(3, 4)), "K odd"),
        (lambda: MotionBlur(kernel=torch.ones(2, 3, 3)).observe(torch.zeros(3, 1, 4, 4)), "a row for every"),
        (lambda: GaussianBlur(size=4), "size to be odd"),
        (lambda: GaussianBlur(std=0.0), "std to be > 0"),
        (lambda: GaussianBlur(size=9).observe(torch.zeros(1, 1, 4, 4)), "twice the side"),
        (lambda: Identity().observe(torch.zeros(1, 1, 4, 4), sigma=-1), "sigma to be >= 0"),
        (lambda: Identity().observe(torch.zeros(1, 1, 4, 4), sigma=float("inf")), "sigma to be >= 0 and finite"),
        (lambda: Identity().observe(torch.zeros(2, 1, 4, 4), ids=torch.arange(3)), "one id per image"),
    ],
)
def test_sentences(make, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Mask(missing="0.5"), "missing"),
        (lambda: GaussianBlur(std="2"), "std"),
        (lambda: MotionBlur(size="9"), "size"),
        (lambda: Downsample("2"), "factor"),
        (lambda: Detector(high="0"), "high"),
        (lambda: PoissonCounts(peak="10"), "peak"),
    ],
)
def test_texts_are_no_numbers(make, name):
    with pytest.raises(TypeError, match=f"expected {name} to be a number, got '"):
        make()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Detector(levels=2.5), "levels"),
        (lambda: Detector(levels=4.0), "levels"),
        (lambda: Downsample(2.0), "factor"),
        (lambda: GaussianBlur(5.0), "size"),
        (lambda: MotionBlur(5.0), "size"),
        (lambda: MotionBlur(True), "size"),
    ],
)
def test_counts_are_whole_numbers(make, name):
    with pytest.raises(TypeError, match=f"expected {name} to be a whole number, got "):
        make()


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (1, 4, 4)])
def test_a_list_of_ids(shape):
    with pytest.raises(TypeError, match="observe: expected ids to be a tensor, got list"):
        Identity().observe(torch.zeros(shape), ids=[0, 1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("operator", [Identity(), Mask(missing=0.5), Detector()])
def test_images_of_whole_numbers(operator, dtype):
    with pytest.raises(TypeError, match="observe: expected x to be a floating-point tensor in data units, got torch"):
        operator.observe(torch.ones(2, 1, 4, 4, dtype=dtype), sigma=0.1)


@pytest.mark.parametrize("ids", [[-1, 0], [0, 3]])
@pytest.mark.parametrize("operator", [Given(Mask(), {"mask": torch.ones(3, 1, 4, 4)}), Mask(torch.ones(3, 1, 4, 4))])
def test_ids_without_a_row(operator, ids):
    with pytest.raises(ValueError, match="a row"):
        operator.observe(torch.zeros(2, 1, 4, 4), ids=torch.tensor(ids))


def test_methods_that_leave_out_the_parameters():
    with pytest.raises(TypeError, match=r"Short: expected apply to take \(self, x, parameters\), got \(self, x\)\."):

        class Short(Operator):
            def apply(self, x):
                return x


def test_what_a_coarse_observation_shows():
    """Its own brightness; a network is shown what networks were trained on, A^T y."""
    operator, x = Downsample(2), torch.full((2, 3, 4, 6), 0.8)
    y = operator.observe(x)
    assert torch.equal(operator.as_image(y, {}), x)
    assert torch.equal(operator.condition(y, {})[:, :3], operator.adjoint(y, {}))

    class Corner(Downsample):
        def apply(self, x, parameters):
            return x[..., ::2, ::2]

        def adjoint(self, y, parameters):
            x = y.new_zeros(*y.shape[:2], 2 * y.shape[2], 2 * y.shape[3])
            x[..., ::2, ::2] = y
            return x

    corner = Corner(2)
    assert torch.equal(corner.as_image(y, {}), corner.adjoint(y, {}))  # of another A
