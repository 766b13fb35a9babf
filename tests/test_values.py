"""Values that mean nothing are refused where they are given, each with one sentence."""

import json
from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch
from tiny_run import one_sentence, train

from emfast._files import write_json, write_tensors
from emfast._json import to_json
from emfast.config import Config, DataConfig, EStepConfig, EvaluationConfig, MStepConfig
from emfast.data import Images
from emfast.em import Observations, e_step
from emfast.em.inputs import read_inputs
from emfast.em.state import RunFolder
from emfast.operators import Identity
from emfast.samplers import (
    DAPS,
    DPS,
    MMPS,
    Conditional,
    DiffPIR,
    PiGDM,
    Prior,
    ReverseFromObservation,
    Sampler,
    WarmStart,
)

NAN, INF = float("nan"), float("inf")
SAMPLERS = (Conditional, DAPS, DPS, MMPS, DiffPIR, PiGDM, Prior, ReverseFromObservation)
NEVER = {
    "steps": [0, -1, 1.5, NAN, INF],
    "flow": [0, -1, 1.5],
    "iterations": [0, -1, NAN, INF],
    "order": [0, -1, 3, NAN],
    "eta": [-0.1, 1.1, NAN, INF],
    "zeta": [-0.1, 1.1, NAN, INF],
    "scale": [-1.0, NAN, INF],
    "sigma_min": [-0.1, 0.0, 1e-5, NAN, INF],
    "width": [0.0, -1.0, NAN, INF],
    "weight": [0.0, -1.0, NAN, INF],
}
SETTINGS = [(s, f.name, v) for s in SAMPLERS for f in fields(s) if f.name != "clip" for v in NEVER[f.name]]


def refused(make, *words):
    """Whether a call raises one sentence with the words."""
    with pytest.raises(ValueError, match=r".+") as error:
        make()
    return one_sentence(str(error.value), words)


@pytest.mark.parametrize(("sampler", "name", "value"), SETTINGS)
def test_samplers(sampler, name, value):
    assert refused(lambda: sampler(**{name: value}), sampler.__name__, f"expected {name} to be", f"got {value}")


@pytest.mark.parametrize("value", ["3", torch.tensor(3), None])
def test_samplers_take_numbers(value):
    with pytest.raises(TypeError, match=r"MMPS: expected steps to be a number, got ('3'|None|\(\) int64)\.$"):
        MMPS(steps=value)


@pytest.mark.parametrize("noise", [0.0, -1.0, NAN, INF])
def test_warm_start(noise):
    assert refused(lambda: WarmStart(MMPS(), torch.zeros(2, 1, 4, 4), torch.arange(2), noise), "WarmStart", "noise")


def test_a_sampler_of_a_user():
    @dataclass(frozen=True)
    class Own(Sampler):
        steps: int = 10
        weight: str = "how it is chosen is up to the user"

    assert Own(steps=3).steps == 3
    assert refused(lambda: Own(steps=-3), "Own", "steps")


@pytest.mark.parametrize("sampler", [Prior(), Sampler()])
def test_samplers_that_do_not_read_the_observations(sampler):
    assert refused(lambda: Config(sampler=sampler), "config", "posterior", type(sampler).__name__)
    assert refused(lambda: e_step(sampler, None, None, None, None), "e_step", "posterior", type(sampler).__name__)


@pytest.mark.parametrize("sigma", [-1.0, -INF, NAN, INF, 1e30])
def test_sigma(sigma):
    images = Images(torch.zeros(2, 1, 4, 4))
    assert refused(lambda: Config(sigma=sigma), "config", "sigma", f"got {sigma}")
    assert refused(lambda: Observations(Identity(), sigma=sigma, images=images), "sigma", f"got {sigma}")


@pytest.mark.parametrize("sigma", ["0.1", torch.tensor([0.1, 0.2])])
def test_sigma_is_one_number(sigma):
    with pytest.raises(TypeError, match="Observations: expected sigma to be a number"):
        Observations(Identity(), sigma=sigma, images=Images(torch.zeros(2, 1, 4, 4)))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: EvaluationConfig(samples=1), "evaluation.samples"),
        (lambda: MStepConfig(learning_rate=INF), "m_step.learning_rate"),
        (lambda: MStepConfig(learning_rate=NAN), "m_step.learning_rate"),
        (lambda: MStepConfig(clip_norm=NAN), "m_step.clip_norm"),
        (lambda: MStepConfig(weight_decay=INF), "m_step.weight_decay"),
        (lambda: MStepConfig(ema=NAN), "m_step.ema"),
        (lambda: EStepConfig(warm_start=INF), "e_step.warm_start"),
        (lambda: EStepConfig(scales=[1.0, INF]), "e_step.scales"),
        (lambda: EStepConfig(scales=[NAN]), "e_step.scales"),
        (lambda: Config(switch_scale=NAN), "switch_scale"),
        (lambda: Config(switch_scale=-1.0), "switch_scale"),
    ],
)
def test_configs(make, name):
    assert refused(make, "config", f"expected {name} to be")


def test_one_reference_image(tmp_path):
    np.save(tmp_path / "one.npy", np.linspace(-1, 1, 784, dtype=np.float32).reshape(1, 1, 28, 28))
    config = Config(data=DataConfig(limit=4, reference=str(tmp_path / "one.npy")))
    assert refused(lambda: read_inputs(config), "data.reference", "2 images or more")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sigma=.inf"], ["sigma", "inf"]),
        (["--sigma=.nan"], ["sigma", "nan"]),
        (["--sigma=1e30"], ["sigma", "1e+30"]),
        (["--sampler.steps=-1"], ["DPS", "steps", "-1"]),
        (["--sampler.scale=-1"], ["DPS", "scale", "-1"]),
        (["--sampler.eta=.nan"], ["DPS", "eta", "nan"]),
        (["--sampler=Prior"], ["sampler", "posterior", "Prior"]),
        (["--sampler=Sampler"], ["sampler"]),
        (["--sampler=emfast.samplers.Sampler"], ["sampler"]),
        (["--operator.missing=1"], ["missing", "1"]),
        (["--operator=Mask", "--operator.missing=null", "--operator.box=12"], ["box", "12"]),
        (["--evaluation.samples=1"], ["evaluation.samples", "1"]),
    ],
)
def test_the_command(flags, words, tmp_path, capsys):
    assert train(tmp_path, *flags) == 2
    assert one_sentence(capsys.readouterr().err, words)
    assert not (tmp_path / "run").exists()


MASK = np.ones((4, 1, 12, 12), dtype=np.float32)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (2 * MASK, ["made of 0 and 1", "2"]),
        (-MASK, ["made of 0 and 1", "-1"]),
        (0.5 * MASK, ["made of 0 and 1", "0.5"]),
        (NAN * MASK, ["mask", "finite"]),
        (0 * MASK, ["mask", "nothing is observed"]),
        (MASK.astype(np.complex64), ["mask", "real"]),
        (MASK[:, 0, 0], ["mask", "(4, 12)"]),
        (MASK[:, 0, :, :7], ["mask", "12 x 7"]),
    ],
)
def test_masks_in_files(mask, words, tmp_path, capsys):
    path = tmp_path / "y.safetensors"
    write_tensors(path, {"y": torch.zeros(4, 1, 12, 12), "mask": torch.from_numpy(mask)})
    assert train(tmp_path, "--data.observations", str(path)) == 2
    assert one_sentence(capsys.readouterr().err, words)
    assert not (tmp_path / "run").exists()


def test_masks_without_channels_in_files(tmp_path):
    path = tmp_path / "y.npz"
    np.savez(path, y=np.zeros((4, 1, 12, 12), dtype=np.float32), mask=MASK[:, 0] > 0)
    observations = read_inputs(Config(data=DataConfig(observations=str(path), reference=None, clean=None))).observations
    assert observations.operator.parameters(torch.arange(2), (1, 12, 12))["mask"].shape == (2, 1, 12, 12)


def test_json_has_neither_nan_nor_infinity(tmp_path):
    def strict(name):
        raise AssertionError(name)

    value = {"a": NAN, "b": [INF, {"c": -INF, "d": np.float64(INF)}], "e": (1.5, "NaN", None, True, 7)}
    expected = {"a": None, "b": [None, {"c": None, "d": None}], "e": [1.5, "NaN", None, True, 7]}
    write_json(tmp_path / "a.json", value)
    for text in ((tmp_path / "a.json").read_text(), to_json(value)):
        assert json.loads(text, parse_constant=strict) == expected
    folder = RunFolder(tmp_path)
    folder.finish({"round": 0, "phase": "warm", "psnr": INF, "misfit": NAN})
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=strict)
    assert row == {"round": 0, "phase": "warm", "psnr": None, "misfit": None}
