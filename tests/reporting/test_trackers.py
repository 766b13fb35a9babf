"""What a training logs: in the metrics, in every tracker, in the report; and that it counts the steps of the run."""

import json

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from test_page import data_of
from tiny_run import train

from emfast.diffusion import VPSchedule
from emfast.em.training_log import EDGES, LEVELS, Meter, by_noise_level, summary
from emfast.reporting import write_report

SMALL = ("--final_rounds", "0", "--accelerate", "false", "--evaluation.samples", "0")
ROUNDS, CONTINUOUS = SMALL, (*SMALL, "--schedule", "continuous", "--e_step.parts", "2")


class Fake(GeneralTracker):
    """A tracker that keeps what it is given."""

    name, requires_logging_directory, given = "fake", False, []

    def __init__(self, run_name, **kwargs):
        super().__init__(_blank=True)

    def start(self):
        self.given.append(("start", {}, None))

    def store_init_configuration(self, values):
        self.given.append(("settings", values, None))

    def log(self, values, step=None):
        self.given.append(("log", values, step))

    def log_images(self, values, step=None):
        self.given.append(("images", values, step))

    def finish(self):
        self.given.append(("finish", {}, None))


@pytest.fixture
def fake(monkeypatch):
    Fake.given = []
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "fake", Fake)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["fake"])
    return Fake.given


def test_losses_by_noise_level():
    schedule = VPSchedule.linear()
    t = schedule.times_of(torch.tensor([0.01, 0.3, 0.4, 1.0, 3.0, 50.0], dtype=torch.float64).log())
    found = by_noise_level(schedule, t, torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, torch.inf]))
    assert (6 * found).tolist() == [[1, 6, 8, 16, torch.inf], [1, 2, 1, 1, 1]]
    assert len(LEVELS) == len(EDGES) + 1


def test_a_meter_gives_the_means_since_it_was_read():
    meter, levels = Meter(torch.device("cpu")), torch.zeros(2, len(LEVELS))
    levels[:, 0] = torch.tensor([1.0, 0.5])
    for loss in (1.0, 3.0):
        meter.add(torch.tensor(loss), torch.tensor(2.0), levels)
    assert meter.read() == {"loss": 2, "gradient_norm": 2, "loss_by_noise": [2, None, None, None, None]}
    meter.add(torch.tensor(7.0), torch.tensor(1.0), None)
    assert meter.read()["loss"] == 7


def test_the_summary_weighs_by_steps():
    row = {"gradient_norm": 1.0, "learning_rate": 0.1, "images_per_second": 10.0, "seconds": 1.0}
    log = [{**row, "steps": s, "loss": x, "loss_by_noise": [x, None]} for s, x in ((3, 1.0), (1, 5.0))]
    log = [{**each, "loss_by_noise": each["loss_by_noise"] + [None] * 3} for each in log]
    assert summary(log)["loss"] == 2
    assert summary(log)["loss_by_noise"] == [2, None, None, None, None]
    assert summary([])["loss"] is None


@pytest.mark.parametrize("flags", [ROUNDS, CONTINUOUS], ids=["rounds", "continuous"])
def test_metrics_trackers_and_report(tmp_path, fake, flags):
    assert train(tmp_path, "--trackers", "fake", *flags) == 0
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["training_steps"] for row in rows] == [4 * (k + 1) for k in range(len(rows))]
    assert all(row["loss"] > 0 and row["gradient_norm"] > 0 and row["images_per_second"] > 0 for row in rows)
    assert all(len(row["loss_by_noise"]) == len(LEVELS) for row in rows)
    kinds = [kind for kind, *_ in fake]
    assert kinds[:2] == ["start", "settings"]
    assert kinds[-1] == "finish"
    assert kinds.count("images") == len(rows)
    assert fake[1][1]["m_step.learning_rate"] == 2e-4
    assert fake[1][1]["operator.missing"] == 0.6
    steps = [step for kind, _, step in fake if kind == "log"]
    assert steps == sorted(steps)
    assert steps[-1] == 4 * len(rows)
    logged = [values for kind, values, _ in fake if kind == "log" and "training/loss" in values]
    assert len(logged) == 2 * len(rows)
    names = {"training/gradient_norm", "training/learning_rate", "training/images_per_second"}
    assert names <= logged[0].keys()
    assert any(name.startswith("loss at noise/") for name in logged[0])
    assert any("round/psnr" in values for _, values, _ in fake)
    data = data_of(write_report([run]))
    assert [row["step"] for row in data["runs"][0]["log"]] == steps_of(fake)
    again = len(fake)
    assert train(tmp_path, "--trackers", "fake", *flags) == 0
    assert len(fake) == again  # nothing was left to do, and no tracker began


def steps_of(fake):
    """The steps at which training logged."""
    return [step for kind, values, step in fake if kind == "log" and "training/loss" in values]


def test_an_interruption_loses_no_row_of_the_log(tmp_path, monkeypatch):
    from emfast.em.trainer import Trainer

    update = Trainer.update

    def stop(self, *arguments):
        if self.step == 3:
            raise KeyboardInterrupt
        update(self, *arguments)

    monkeypatch.setattr(Trainer, "update", stop)
    assert train(tmp_path, *SMALL, "--rounds", "0") == 130
    monkeypatch.setattr(Trainer, "update", update)
    assert train(tmp_path, *SMALL, "--rounds", "0") == 0
    log = data_of(write_report([tmp_path / "run"]))["runs"][0]["log"]
    assert [row["step"] for row in log] == [2, 4]


@pytest.mark.parametrize(("name", "words"), [("wandbb", "'wandb'"), ("dvclive", "pip install dvclive")])
def test_what_is_not_there_is_said_at_the_start(tmp_path, capsys, name, words):
    assert train(tmp_path, "--trackers", name) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert train(tmp_path, "--trackers", "wandb", *SMALL, "--rounds", "0") == 0
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
