"""The benchmark of whole methods: every method has a config on its tasks, and is measured at every round."""

import dataclasses
import json
import os

import em
import em_show
import pytest
import rivals
import tiny_run
import torch
import yaml
from em_measure import variance

from emfast.config import Config, MStepConfig
from emfast.em.events import Predicted, Progress, RoundFinished


def methods():
    return [(task, method) for task in em.TASKS for method in em.METHODS]


@pytest.mark.parametrize(("task", "method"), methods())
def test_every_method_has_the_data_and_network_of_its_task(task, method, tmp_path):
    config, ours = (em.config_of(task, name, 3, tmp_path) for name in (method, em.OURS))
    if config is None:
        of_some_tasks = ("diem", "sfbd", "ambient", "noise2self", "sure_score")
        none_left = method == em.OTHERS and task.startswith("rgb")
        assert none_left or method in of_some_tasks or (task.endswith("-unaided") and method not in em.UNAIDED_METHODS)
        return
    assert (config.data.clean_count == 0) == (method == "diem" or task.endswith("-unaided"))
    assert method != em.LONG or config.rounds == 3 * ours.rounds
    assert (config.seed, config.sigma, config.data.images) == (3, ours.sigma, ours.data.images)
    assert type(config.operator) is type(ours.operator)
    same = dataclasses.replace(config.network, prediction=ours.network.prediction)
    assert same == ours.network
    rounds = method in em.RIVALS and not hasattr(em.rival(method), "points")
    assert (config.schedule == "continuous") == (not rounds)


def test_rounds_and_bounds_are_measured(tmp_path, monkeypatch, capsys):
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump({**tiny_run.CONFIG, "data": {"size": 12, "limit": 24}}))
    monkeypatch.setattr(em, "TASKS", {"mask-60": (str(tmp_path / "demo.yaml"), {"final_rounds": 0})})
    monkeypatch.setattr(em, "FILE", tmp_path / "em.jsonl")
    monkeypatch.setattr(rivals, "STEPS", 8)
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
    assert all(0 <= row["coverage"] <= 1 and row["variance"] > 0 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) >= len(rows)
    assert [row["nice"] for row in rows] == [os.nice(0)] * 4
    costs = [(row["cpu_seconds"], row["seconds"]) for row in rows]
    assert all(cpu > 0 and wall > 0 for cpu, wall in costs)
    assert costs[0][0] < costs[1][0]  # of both rounds
    text = em_show.table([json.loads(json.dumps(row)) for row in rows])
    assert text.count("not run") == len(em.RIVALS) - 3  # of those for noise there is no cell
    em_show.draw("mask-60", rows, tmp_path / "em.png")
    assert (tmp_path / "em.png").stat().st_size > 0
    assert f"| mask-60 | {em.OURS} | 1 | {rows[1]['evaluations']} |" in text


def test_exact_posterior_samples_have_the_variance_that_their_error_asks_for():
    mean, *draws = torch.randn(6, 500, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    truth, samples = mean + draws[0], mean + torch.stack(draws[1:])
    assert variance(truth, samples) == pytest.approx(1, abs=0.05)
    assert variance(truth, mean + 0.5 * torch.stack(draws[1:])) == pytest.approx(0.25 * 1.25 / 1.0625, abs=0.05)


def test_a_run_of_some_rounds_is_no_whole_one(tmp_path, monkeypatch):
    file = tmp_path / "demo.yaml"
    file.write_text(yaml.safe_dump({**tiny_run.CONFIG, "rounds": 2, "data": {"size": 12, "limit": 24}}))
    monkeypatch.setattr(em, "TASKS", {"mask-60": (str(file), {"final_rounds": 1})})
    monkeypatch.setattr(em, "FILE", tmp_path / "em.jsonl")
    em.run("mask-60", em.OURS, 0, tmp_path / "runs", set(), True, ends=True, rounds=1)
    assert [(row["round"], row["stopped"]) for row in em.saved()] == [(1, True)]
    assert f"| mask-60 | {em.OURS}, the first 1 of 3 rounds | 1 |" in em_show.table(em.saved())
    em.run("mask-60", em.OURS, 0, tmp_path / "runs", set(), True, ends=True)  # goes on with it
    assert [(row["round"], "stopped" in row) for row in em.saved()] == [(1, True), (3, False)]
    assert f"| mask-60 | {em.OURS} | 1 |" in em_show.table(em.saved())


def test_a_spread_is_of_several_seeds():
    assert em_show.spread([26.5]) == "26.50"
    assert em_show.spread([0.8, 0.9, 1.0]) == "0.9 ± 0.1"
    assert em_show.spread([]) == ""


def test_minutes_are_of_quiet_runs_and_of_the_cpu_where_they_are_known():
    old, shared, quiet = {"seconds": 9.0}, {"seconds": 600.0, "cpu_seconds": 60.0, "nice": 10}, {"nice": 0}
    quiet |= {"seconds": 90.0, "cpu_seconds": 180.0}
    assert [em_show.minutes(rows) for rows in ([old], [shared], [old, shared, quiet])] == ["", "(1.0)", "1.5 (2.0)"]


def test_the_cpu_seconds_of_a_run_that_was_gone_on_with_are_not_known(tmp_path):
    clock = em.CpuClock(tmp_path)
    clock(RoundFinished({"round": 3}, tmp_path))  # without the event that a new run begins with
    assert em.CpuClock(tmp_path).rounds == {}
    clock(Predicted(1, 1, "cpu", {}, 1, 1.0, "rounds"))
    clock(Progress("samples", 0, 1, 2))
    clock(RoundFinished({"round": 0}, tmp_path))
    assert list(em.CpuClock(tmp_path).rounds) == ["0"]


def test_the_rounds_are_those_of_a_config_without_what_is_new(tmp_path):
    config = em.config_of("mask-60", "rounds", 0, tmp_path)
    plain = MStepConfig(initial_steps=250, steps=250, batch_size=64, learning_rate=1e-3, warmup=50, ema=0.99)
    assert dataclasses.replace(config.m_step, checkpoint=plain.checkpoint) == plain
    assert config.network.prediction == "eps"
    assert (config.rounds, config.final_rounds, config.gaussian.always) == (7, 0, False)
