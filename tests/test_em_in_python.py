"""The example of a whole run in Python, on settings that are smaller still."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

import emfast
from emfast.config import DataConfig, EStepConfig, EvaluationConfig, MStepConfig, NetworkConfig

PATH = Path(__file__).parent.parent / "examples" / "em_in_python.py"


def test_the_example(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("em_in_python", PATH)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    config = replace(
        example.make_config(str(tmp_path / "run")),
        data=DataConfig(size=16, limit=16, clean_count=8),
        sampler=emfast.samplers.MMPS(steps=2, iterations=1),
        network=NetworkConfig(channels=[8, 8], attention=[], head_dim=8, groups=4, layers=1),
        e_step=EStepConfig(batch_size=8),
        m_step=MStepConfig(initial_steps=2, steps=2, batch_size=8),
        evaluation=EvaluationConfig(samples=4, steps=2, pictures=2),
        rounds=1,
    )
    restored = example.main(config)
    assert restored.shape == (32, 1, 16, 16)
    assert bool(restored.isfinite().all())
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in printed[:2]] == ["{'round': 0", "{'round': 1"]
    assert (tmp_path / "run" / "summary.png").is_file()
    assert (tmp_path / "run" / "restored.png").is_file()


@pytest.mark.parametrize("config", [{"output": "x"}, "config.yaml", None])
def test_train_takes_a_config(config):
    with pytest.raises(TypeError, match=r"train: expected config to be an emfast\.Config, got .* Config\.from_yaml"):
        emfast.train(config)
