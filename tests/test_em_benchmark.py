"""The benchmark of whole methods: every method has a config on its tasks, and is measured at every round."""

import dataclasses
import json

import em
import pytest
import tiny_run
import yaml

from emfast.config import Config, MStepConfig


def methods():
    return [(task, method) for task in em.TASKS for method in em.METHODS]


@pytest.mark.parametrize(("task", "method"), methods())
def test_every_method_has_the_data_and_network_of_its_task(task, method, tmp_path):
    config, ours = (em.config_of(task, name, 3, tmp_path) for name in (method, em.OURS))
    if config is None:
        assert method in ("diem", "sfbd")
        return
    assert (config.seed, config.sigma, config.data.images) == (3, ours.sigma, ours.data.images)
    assert type(config.operator) is type(ours.operator)
    same = dataclasses.replace(config.network, prediction=ours.network.prediction)
    assert same == ours.network
    assert (config.schedule == "continuous") == (method not in em.RIVALS)


def test_rounds_and_bounds_are_measured(tmp_path, monkeypatch, capsys):
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump({**tiny_run.CONFIG, "data": {"size": 12, "limit": 24}}))
    monkeypatch.setattr(em, "TASKS", {"mask-60": (str(tmp_path / "demo.yaml"), {"final_rounds": 0})})
    monkeypatch.setattr(em, "FILE", tmp_path / "em.jsonl")
    monkeypatch.setattr(em, "BOUND_STEPS", 8)
    (tmp_path / "em.jsonl").touch()
    for method in (em.OURS, *em.BOUNDS):
        em.run("mask-60", method, 0, tmp_path / "runs", set(), True)
    rows = em.saved()
    known = {(row["task"], row["method"], row["seed"], row["round"]) for row in rows}
    for method in (em.OURS, *em.BOUNDS):  # what was measured is neither measured nor run again
        em.run("mask-60", method, 0, tmp_path / "elsewhere", known, True)
    assert em.saved() == rows
    assert not (tmp_path / "elsewhere").exists()
    assert [(row["method"], row["round"]) for row in rows] == [
        *((em.OURS, k) for k in range(2)),
        *((name, 0) for name in em.BOUNDS),
    ]
    config = Config.from_yaml(tmp_path / "demo.yaml")
    assert rows[0]["evaluations"] == 3 * 8 * config.m_step.initial_steps
    assert rows[1]["evaluations"] == 3 * 8 * 8 + 6 * 16
    assert all(row["psnr"] > 0 and row["fd"] > 0 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) >= len(rows)
    text = em.table([json.loads(json.dumps(row)) for row in rows])
    assert text.count("not run") == len(em.RIVALS) - 1  # of SFBD there is no cell: it is for noise
    em.draw("mask-60", rows, tmp_path / "em.png")
    assert (tmp_path / "em.png").stat().st_size > 0
    assert f"| mask-60 | {em.OURS} | 1 | {rows[1]['evaluations']} |" in text


def test_a_spread_is_of_several_seeds():
    assert em.spread([26.5]) == "26.50"
    assert em.spread([0.8, 0.9, 1.0]) == "0.9 ± 0.1"


def test_the_rounds_are_those_of_a_config_without_what_is_new(tmp_path):
    config = em.config_of("mask-60", "rounds", 0, tmp_path)
    plain = MStepConfig(initial_steps=250, steps=250, batch_size=64, learning_rate=1e-3, warmup=50, ema=0.99)
    assert dataclasses.replace(config.m_step, checkpoint=plain.checkpoint) == plain
    assert config.network.prediction == "eps"
    assert (config.rounds, config.final_rounds, config.gaussian.always) == (7, 0, False)
