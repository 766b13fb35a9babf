"""What a YAML loader takes without a word, and a run must not."""

import pytest
import yaml
from tiny_run import one_sentence

from emfast._yaml import check_yaml, load_yaml
from emfast.cli import main
from emfast.config import Config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rounds: 1\nrounds: 2\n", ["every key once", "rounds again in line 2"]),
        ("data:\n  size: 8\n  limit: 4\n  size: 12\n", ["data.size again in line 4"]),
        ("operator: {class_path: Mask, class_path: Identity}\n", ["operator.class_path again in line 1"]),
        ("data: {}\nsigma: 0.1\n'data': {size: 8}\n", ["data again in line 3"]),
        ("a: [{b: 1, b: 2}]\n", ["a.b again"]),
        ("operator: Mask\ninit_args: {missing: 0.2}\n", ["top level", "init_args", "operator"]),
        ("operator: Mask\ninit_args: {}\n", ["top level", "init_args"]),
        ("class_path: Mask\n", ["top level", "class_path"]),
    ],
)
def test_mistakes(text, words, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"train: expected .*bad\.yaml") as error:
        check_yaml(path, "train")
    assert one_sentence(str(error.value), words)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "text\n",
        "- a\n- a\n",
        "rounds: 1\ndata: {size: 8}\ne_step: {size: 8}\n",
        "operator: {class_path: Mask, init_args: {missing: 0.2}}\n",
        "data: &d {size: 8}\nother: *d\n",
        "a: &a [*a]\n",
        "a: [b\n c: {",  # the loader has the sentence
        "\x00",
    ],
)
def test_the_rest_is_left_to_the_loader(text, tmp_path):
    path = tmp_path / "good.yaml"
    path.write_text(text)
    check_yaml(path, "train")
    check_yaml(tmp_path / "none.yaml", "train")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e-3", 0.001), ("-1.5e+2", -150.0), ("1_000", 1000), ("0x10", 16), ("0", 0), ("-7", -7), (".5", 0.5)),
        *(("010", "010"), ("0_7", "0_7"), ("-012", "-012"), ("2026-01-01", "2026-01-01"), ("08", "08")),
    ],
)
def test_numbers_are_what_people_mean(text, value):
    found = load_yaml(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["1e3", "010", "08", "1:30", "0x1", "2026-01-01", "yes", "null", ".5", "1_0", "a: b"])
def test_texts_stay_texts(text):
    written = Config(output=text).to_yaml()
    assert load_yaml(written)["output"] == text
    assert yaml.safe_load(written)["output"] == text


def test_the_command_line_looks_at_its_config(tmp_path, capsys):
    path = tmp_path / "twice.yaml"
    path.write_text("rounds: 1\nrounds: 2\n")
    for argv in (["--config", str(path)], [f"--config={path}"]):
        assert main(["train", *argv, "--output", str(tmp_path / "run")]) == 2
        assert one_sentence(capsys.readouterr().err, ["twice.yaml", "every key once", "rounds again in line 2"])
    assert not (tmp_path / "run").exists()
