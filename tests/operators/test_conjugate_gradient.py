"""Conjugate gradients: exact where the system is symmetric, and no worse with more iterations where it is not."""

import torch

from emfast.operators.conjugate_gradient import conjugate_gradient


def systems(skew):
    """Four systems of 12 unknowns, symmetric but for a skew part, as functions of (4, 12) and as (4, 12, 12)."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4, 12, 12, generator=generator, dtype=torch.float64)
    matrix = a @ a.mT + 0.1 * torch.eye(12, dtype=torch.float64) + skew * (b - b.mT)
    return (lambda u: (matrix @ u[..., None])[..., 0]), torch.randn(4, 12, generator=generator, dtype=torch.float64)


def residuals(skew):
    """The norms of what 1 ... 12 iterations leave, (12, 4)."""
    system, b = systems(skew)
    return torch.stack([(b - system(conjugate_gradient(system, b, k))).norm(dim=1) for k in range(1, 13)])


def test_a_symmetric_system_is_solved_in_as_many_iterations_as_it_has_unknowns():
    found = residuals(0.0)
    assert float((found[-1] / found[0]).max()) < 1e-6


def test_more_iterations_are_never_worse_than_fewer():
    for skew in (0.0, 1.0, 5.0):
        assert bool((residuals(skew).diff(dim=0) <= 1e-9).all())


def test_a_curvature_that_is_no_number_is_not_passed_over():
    found = conjugate_gradient(lambda u: torch.stack((u[0], torch.nan * u[1])), torch.ones(2, 3), 2)
    assert torch.equal(found[0], torch.ones(3))
    assert found[1].isnan().all()


def test_the_first_iterate_is_taken_however_far_off():
    b = torch.ones(1, 2, dtype=torch.float64)
    turn = torch.tensor([[1.0, 3.0], [-3.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(conjugate_gradient(lambda u: u @ turn.T, b, 1), b)  # the residual has grown threefold
