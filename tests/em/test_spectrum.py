"""The cosine transform and the spectra that the first Gaussian is made of."""

import torch

from emfast.data import Images
from emfast.em import Observations
from emfast.em.initialisation import fit_gaussian
from emfast.em.spectrum import frequencies, inverse, natural_spectrum, spectrum_of, transform
from emfast.operators import GaussianBlur

CPU = torch.device("cpu")


def falling(count, height, width):
    """Images whose spectrum falls as that of photographs does."""
    noise = torch.randn(count, 1, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return inverse(natural_spectrum(height, width, CPU).sqrt() * transform(noise))


def test_the_transform_is_orthogonal_and_its_first_coefficient_the_mean():
    x = torch.randn(2, 3, 6, 9, dtype=torch.float64)
    torch.testing.assert_close(inverse(transform(x)), x)
    torch.testing.assert_close(transform(x).square().sum(), x.square().sum())
    torch.testing.assert_close(transform(x)[..., 0, 0], x.sum((-2, -1)) / 54**0.5)


def test_a_spectrum_is_found_again():
    expected = natural_spectrum(12, 16, CPU)
    found = spectrum_of(falling(2000, 12, 16))
    torch.testing.assert_close(found, expected, rtol=0.2, atol=0)
    assert int(frequencies(12, 16, CPU)[0, 15]) == 15
    assert int(frequencies(12, 16, CPU)[9, 0]) == 12


def test_detail_under_a_blur_falls_as_in_photographs():
    """Not as white noise, which has far more power there."""
    images = 0.3 * falling(1000, 16, 16)
    data = Observations(GaussianBlur(size=9, std=2.0), sigma=0.01, images=Images(images.float()), seed=2)
    ids = torch.arange(1000)
    found = spectrum_of(fit_gaussian(data, ids, rank=8, rounds=6).posterior(data, ids, seed=1))
    fine = frequencies(16, 16, CPU) >= 12
    ratio = found[fine].sum() / spectrum_of(images)[fine].sum()
    assert 0.3 < float(ratio) < 3
