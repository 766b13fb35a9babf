"""The MRI example, at toy size: its operator, and the whole run without a clean image."""

import importlib.util
from pathlib import Path

import pytest
import torch

from emfast.config import EvaluationConfig, GaussianConfig, MStepConfig, NetworkConfig
from emfast.samplers import MMPS

PATH = Path(__file__).parent.parent / "examples" / "mri.py"


@pytest.fixture(scope="module")
def mri():
    spec = importlib.util.spec_from_file_location("mri", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_operator(mri):
    x, side = mri.phantoms(3, 12).double(), 12
    scans = mri.measure(x.float())
    parameters = {name: value.double() for name, value in scans.items() if name != "y"}
    operator, y = mri.MultiCoil(), torch.randn(scans["y"].shape, dtype=torch.float64)
    left, right = (operator.apply(x, parameters) * y).sum(), (x * operator.adjoint(y, parameters)).sum()
    assert abs(left - right) < 1e-10 * abs(left)
    everywhere = {**parameters, "sampled": torch.ones(3, 1, 1, side, side)}
    torch.testing.assert_close(operator.adjoint(operator.apply(x, everywhere), everywhere), x)
    assert (scans["y"] == 0)[(scans["sampled"] == 0).expand_as(scans["y"])].all()
    assert not torch.equal(scans["sampled"][0], scans["sampled"][1])


def test_the_example(mri, tmp_path, capsys):
    x = mri.main(
        str(tmp_path / "run"),
        count=12,
        side=12,
        m_step=MStepConfig(initial_steps=2, steps=2, batch_size=4),
        gaussian=GaussianConfig(rank=2, rounds=1),
        evaluation=EvaluationConfig(samples=2, steps=2, pictures=2),
        sampler=MMPS(steps=2, iterations=1),
        network=NetworkConfig(channels=[8, 8], attention=[], head_dim=8, groups=4, layers=1),
        rounds=1,
        accelerate=False,
    )
    assert x.shape == (8, 2, 12, 12)
    assert (tmp_path / "run" / "mri.png").is_file()
    assert "zero-filled" in capsys.readouterr().out
