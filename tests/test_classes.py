"""A sampler or operator named on the command line starts from its own defaults."""

import pytest

from emfast.commands.parser import parse
from emfast.config import Config
from emfast.operators import GaussianBlur, Mask
from emfast.samplers import DPS, MMPS, PiGDM

CONFIG = "sampler: {class_path: MMPS, init_args: {steps: 7}}\noperator: {class_path: Mask, init_args: {box: 3}}\n"


@pytest.mark.parametrize(
    ("argv", "sampler"),
    [
        (["--sampler", "MMPS"], MMPS()),
        (["--sampler=PiGDM", "--sampler.iterations", "3"], PiGDM(iterations=3)),
        (["--sampler.steps", "3", "--sampler", "DPS"], DPS(steps=3)),
        (["--config", "FILE"], MMPS(steps=7)),
        (["--config=FILE", "--sampler", "DPS"], DPS()),
        (["--config", "FILE", "--sampler", "emfast.samplers.MMPS", "--sampler.iterations", "4"], MMPS(7, 4)),
    ],
)
def test_samplers(tmp_path, argv, sampler):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    config, _ = parse("train", Config, [argument.replace("FILE", str(path)) for argument in argv])
    assert config.sampler == sampler
    assert isinstance(config.operator, Mask)
    assert (config.operator.box is None) == ("FILE" not in "".join(argv))


def test_a_written_config_gives_the_same_again(tmp_path):
    first, text = parse("train", Config, ["--operator", "GaussianBlur", "--sampler", "PiGDM"])
    (tmp_path / "run.yaml").write_text(text)
    again, _ = parse("train", Config, ["--config", str(tmp_path / "run.yaml")])
    assert again.sampler == first.sampler == PiGDM()
    assert isinstance(again.operator, GaussianBlur)
