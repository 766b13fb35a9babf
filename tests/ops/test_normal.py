import pytest
import torch
from contracts import max_norm, require, rms_norm

from emfast import random
from emfast.dispatch import backend as forced

IDS = torch.tensor([5, 2**40 + 3, 0, -7])


def exact(words):
    """Box-Muller in float64 on the uniform numbers of the reference, which are float32 by specification."""
    u = ((words.float() + 0.5) * 2.0**-32).double()
    radius, angle = (-2 * u[..., 0::2].log()).sqrt(), 2 * torch.pi * u[..., 1::2]
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1).flatten(1)


@pytest.mark.parametrize("seed", [0, 1, 2**31 + 5, 2**63 + 2**40 + 1, 2**64 - 1])
@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (1, 67, 129)])
def test_the_stream_is_the_specified_one(shape, seed, backend, device):
    require("normal", backend, device)
    step, ids = torch.tensor(2**32 - 1, device=device), IDS.to(device)
    with forced(backend):
        ours, again = (random.normal(shape, ids=ids, seed=seed, step=step) for _ in range(2))
    count = ours[0].numel()
    usual = random.reference(shape, IDS, step.cpu(), random.signed(seed, "test"))
    r = exact(random._words(count, IDS, seed, step.cpu()))[:, :count].reshape(usual.shape)
    assert torch.equal(ours, again)
    for norm in (max_norm, rms_norm):
        assert norm(ours.cpu() - r) <= 2 * norm(usual - r) + torch.finfo(torch.float32).eps * norm(r)


def test_rows_and_beginnings_are_the_same_bits(backend, device):
    require("normal", backend, device)
    ids = IDS.to(device)
    with forced(backend):
        whole = random.normal((2, 3000), ids=ids, seed=9, step=4)
        assert torch.equal(whole[2:3], random.normal((2, 3000), ids=ids[2:3], seed=9, step=4))
        assert torch.equal(whole[:, 0, :11], random.normal((11,), ids=ids, seed=9, step=4))
        assert random.normal((4,), ids=ids[:0], seed=9).shape == (0, 4)
        assert random.normal((0,), ids=ids, seed=9).shape == (4, 0)


def test_registration(backend, device):
    require("normal", backend, device)
    arguments = {"ids": IDS.to(device)}

    def draw(ids):
        return random.normal((3, 5), ids=ids, seed=2**63, step=3)

    op = torch.ops.emfast.normal.default
    with forced(backend):
        torch.library.opcheck(op, ((3, 5), arguments["ids"], torch.tensor(3, device=device), -5))
        compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(**arguments), draw(**arguments))
