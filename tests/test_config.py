"""A config is made in code, read from a file, written to one, and given to emfast.train: the same run each time."""

import dataclasses

import numpy as np
import pytest
import tiny_run
import torch
import yaml

import emfast
from emfast.cli import main
from emfast.commands.parser import parse
from emfast.config import DataConfig, EStepConfig, EvaluationConfig, MStepConfig, NetworkConfig
from emfast.operators import Downsample, GaussianBlur, Identity, Linear, Mask, MotionBlur, Operator
from emfast.samplers import DAPS, DPS, ReverseFromObservation


@dataclasses.dataclass(frozen=True)
class Own(Identity):
    """An operator of a user that is a dataclass."""

    factor: float = 2.0


def halved(x):
    return 0.5 * x


def tiny(folder, **changes):
    """CONFIG of tiny_run, in code."""
    settings = {
        "output": str(folder / "run"),
        "data": DataConfig(size=12, limit=24, clean_count=16, reference=None),
        "operator": Mask(missing=0.6),
        "sampler": DPS(steps=3),
        "network": NetworkConfig(channels=[8, 16], attention=[1], groups=4, head_dim=8, layers=1),
        "e_step": EStepConfig(batch_size=8, shard_size=8, subset=16),
        "m_step": MStepConfig(initial_steps=4, steps=4, final_steps=4, batch_size=8, checkpoint=2),
        "evaluation": EvaluationConfig(samples=16, steps=2, pictures=4),
        "rounds": 1,
        "final_rounds": 1,
        "device": "cpu",
    }
    return emfast.Config(**settings | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"operator": GaussianBlur(5, padding="circular"), "sampler": DAPS(flow=3)},
        {"operator": Identity(), "sigma": 0.1, "sampler": ReverseFromObservation(steps=7)},
        {"operator": Downsample(), "e_step": EStepConfig(scales=[1.0, 0.5], warm_start=None), "sampler": DPS()},
        {"operator": MotionBlur(size=3), "data": DataConfig(images="ä b", reference=None), "accelerate": False},
        {"operator": Linear(halved, shape=(1, 28, 28))},
        {"operator": Linear(torch.fliplr, (1, 28, 28), adjoint=torch.fliplr)},
        {"operator": Own(factor=3.0), "sigma": 0.1},
    ],
)
def test_what_is_written_gives_the_same_again(tmp_path, changes):
    config = emfast.Config(**changes)
    path = tmp_path / "run.yaml"
    path.write_text(config.to_yaml())
    again = emfast.Config.from_yaml(path)
    assert again.to_yaml() == config.to_yaml()
    assert type(again.operator) is type(config.operator)
    for field in dataclasses.fields(config):
        if field.name != "operator":
            assert getattr(again, field.name) == getattr(config, field.name)
    assert parse("train", emfast.Config, ["--config", str(path)])[1] == config.to_yaml()  # as the command writes it


def test_a_mask_is_written_as_it_was_given(tmp_path):
    import numpy as np

    np.save(tmp_path / "mask.npy", np.eye(4))
    config = emfast.Config(operator=Mask(mask=str(tmp_path / "mask.npy"), seed=np.int64(3)))
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    again = emfast.Config.from_yaml(tmp_path / "run.yaml").operator
    assert torch.equal(again.mask, config.operator.mask)
    assert again.seed == 3


def test_the_fields_that_a_file_leaves_out(tmp_path):
    (tmp_path / "run.yaml").write_text("rounds: 3\noperator: {class_path: Identity}\nsigma: 0.2\n")
    config = emfast.Config.from_yaml(tmp_path / "run.yaml")
    assert (config.rounds, config.sampler) == (3, ReverseFromObservation())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("round: 3\n", ["'round'", "The nearest is 'rounds'"]),
        ("rounds: many\n", ["rounds", "a whole number"]),
        ("rounds: -1\n", ["config", "rounds", "-1"]),
        ("rounds: [\n", ["valid YAML"]),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence(tmp_path, text, words):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"^(emfast train|config)") as error:
        emfast.Config.from_yaml(tmp_path / "run.yaml")
    assert tiny_run.one_sentence(str(error.value), words)


def local():
    class Local(Identity):
        def __init__(self, factor=1.0):
            self.factor = factor

    return Local(2.0)


@pytest.mark.parametrize(
    ("operator", "names", "described"),
    [
        (Mask(torch.eye(4)), ["operator.missing"], "<(4, 4) float32 with the checksum "),
        (Mask(mask=torch.ones(4, 4)), ["operator.mask"], "<(4, 4) float32 with the checksum "),
        (Linear(lambda x: x, (1, 4, 4)), ["operator.function"], "test_config.<lambda>"),
        (Linear(torch.nn.Conv2d(1, 1, 1), (1, 4, 4)), ["operator.function"], "<torch.nn.Conv2d>"),
        (local(), ["operator"], "test_config.local.<locals>.Local"),
    ],
)
def test_what_a_file_cannot_say_is_named_in_it(operator, names, described):
    text = emfast.Config(operator=operator, sigma=0.1).to_yaml()
    for name in names:
        assert f"# {name} is given in Python" in text
    assert described in text
    assert text.count("# ") == len(names)
    assert yaml.safe_load(text)["operator"]["class_path"]


def test_other_masks_are_other_runs():
    assert (
        emfast.Config(operator=Mask(torch.eye(4))).to_yaml() != emfast.Config(operator=Mask(torch.ones(4, 4))).to_yaml()
    )


def test_a_run_from_python_is_that_of_the_command(tmp_path):
    events = []
    folder = emfast.train(tiny(tmp_path), events.append)
    assert folder == tmp_path / "run" / "model"
    assert [event.row["phase"] for event in events if isinstance(event, emfast.em.RoundFinished)] == [
        "initial",
        "warm",
        "final",
    ]
    (tmp_path / "other").mkdir()
    assert tiny_run.train(tmp_path / "other") == 0
    ours, theirs = ((tmp_path / name / "run") for name in (".", "other"))
    weights = "model/unet/diffusion_pytorch_model.safetensors"
    assert (ours / weights).read_bytes() == (theirs / weights).read_bytes()
    ours_config, theirs_config = ((run / "config.yaml").read_text() for run in (ours, theirs))
    assert ours_config == theirs_config.replace(str(tmp_path / "other"), str(tmp_path))

    assert emfast.train(emfast.Config.from_yaml(ours / "config.yaml")) == folder


def test_a_run_with_a_function_of_python(tmp_path, capsys):
    config = tiny(tmp_path, operator=Linear(lambda x: 0.5 * x, shape=(1, 12, 12)), rounds=0, final_rounds=1)
    folder = emfast.train(config)
    assert emfast.train(config) == folder
    with pytest.raises(ValueError, match=r"function"):
        emfast.train(tiny(tmp_path, operator=Linear(halved, shape=(1, 12, 12)), rounds=0, final_rounds=1))
    assert main(["train", "--config", str(tmp_path / "run" / "config.yaml")]) == 2
    assert tiny_run.one_sentence(capsys.readouterr().err, ["function"])


def test_copies_of_an_operator_are_written_alike(tmp_path):
    import copy
    import pickle

    operator = GaussianBlur(5, std=1.5)
    text = emfast.Config(operator=operator).to_yaml()
    for other in (copy.copy(operator), copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))):
        assert isinstance(other, Operator)
        assert emfast.Config(operator=other).to_yaml() == text


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: emfast.Config(schedule="contin"), r"schedule to be one of 'rounds', 'continuous', got 'contin'"),
        (lambda: MStepConfig(optimizer="sgd"), r"m_step.optimizer to be one of 'adamw', 'muon', got 'sgd'"),
        (lambda: emfast.Config(rounds="3"), r"rounds to be a whole number, got '3'"),
        (lambda: emfast.Config(seed=1.5), r"seed to be a whole number, got 1.5"),
        (lambda: MStepConfig(learning_rate="1e-4"), r"m_step.learning_rate to be a number, got '1e-4'"),
        (lambda: EStepConfig(batch_size="many"), r"e_step.batch_size to be a whole number or 'auto', got 'many'"),
        (lambda: NetworkConfig(channels="8,16"), r"network.channels to be a list of which each is a whole number"),
        (lambda: emfast.Config(network={"layers": 1}), r"network to be NetworkConfig, .* Write NetworkConfig\(...\)"),
        (lambda: emfast.Config(sampler=DPS), r"sampler to be Sampler or null, got the class DPS. Write DPS\(...\)"),
        (lambda: emfast.Config(operator=Mask), r"operator to be Operator or null, got the class Mask"),
        (
            lambda: emfast.Config(operator=halved),
            r"operator to be an Operator, got .* Give operators.Linear\(function, shape",
        ),
    ],
)
def test_what_is_of_another_type_is_told(make, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        make()


def test_paths_numpy_and_tuples_are_taken_as_a_file_has_them(tmp_path):
    network = NetworkConfig(channels=(8, 16), attention=())
    config = emfast.Config(output=tmp_path / "run", rounds=np.int64(3), sigma=np.float32(0.5), network=network)
    assert yaml.safe_load(config.to_yaml())["network"]["channels"] == [8, 16]
    assert (config.output, config.rounds, config.sigma) == (str(tmp_path / "run"), 3, 0.5)
    assert emfast.Config(data=DataConfig(images=tmp_path / "a")).data.images == str(tmp_path / "a")
