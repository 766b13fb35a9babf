"""Whatever goes wrong, the command ends, with one sentence on stderr and an exit code that says whose fault it is."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch
from tiny_run import one_sentence, train, write_config

from emfast import cli
from emfast._process import machine
from emfast.cli import main
from emfast.data import Store

OPERATOR = """
import torch
from emfast.operators import Mask

class Unreadable(Exception):
    def __str__(self):
        raise RuntimeError

class NoException(BaseException):
    pass

class Raises(Mask):
    def apply(self, *args, **kwargs):
        raise {what}
"""
HINT = "EMFAST_DEBUG=1"


def refused(capsys, argv, *words, code=2):
    """Whether the command ends with the code and one sentence that holds the words."""
    assert main([str(word) for word in argv]) == code
    out, err = capsys.readouterr()
    assert one_sentence(err, words), err
    assert out == ""
    return True


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("failures")
    assert train(folder) == 0
    return folder / "run"


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run, to be damaged, and the command that goes on with it."""
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run", ["train", "--config", write_config(tmp_path)]


# ----------------------------------------------------------------------- whose fault it is


def test_a_fault_of_emfast(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("emfast.commands.train.train", int)  # called with what it does not take
    assert refused(capsys, ["train", "--config", write_config(tmp_path)], "TypeError", "a bug in emfast", HINT, code=1)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ('KeyError("a\\nb")', ["KeyError"]),
        ("Unreadable", ["Unreadable"]),
        ('NoException("[/x]")', ["NoException: [/x]"]),
        ("MemoryError", ["Memory"]),
        ("torch.zeros(3) @ torch.zeros(4)", ["RuntimeError"]),
        ('OSError("no disk")', ["no disk"]),
    ],
)
def test_an_operator_that_raises(what, words, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"operator_{abs(hash(what))}"
    (tmp_path / f"{name}.py").write_text(OPERATOR.format(what=what))
    argv = ["train", "--config", write_config(tmp_path), "--operator", f"{name}.Raises"]
    assert refused(capsys, argv, *words, HINT)
    assert not (tmp_path / "run").exists()


METHODS = """
import torch
from emfast.operators import Operator

class Plain(Operator):
    def parameters(self, ids, shape):
        return {{}}

    def apply(self, x, parameters):
        return x

    def adjoint(self, y, parameters):
        return y

class Odd(Plain):
    def {method}(self, *args, **kwargs):
        return {value}
"""


def test_a_package_that_the_user_brings(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    (folder / "brought.py").write_text(OPERATOR.format(what="KeyError(3)"))
    argv = ["train", "--config", write_config(tmp_path), "--operator", "brought.Raises"]
    assert refused(capsys, argv, "brought.py to run without an error", "KeyError: 3", HINT)


@pytest.mark.parametrize("value", ["None", "'x'", "[1]"])
@pytest.mark.parametrize("method", ["parameters", "apply", "adjoint", "noise", "misfit"])
def test_an_operator_that_returns_something_else(method, value, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"odd_{method}_{abs(hash(value))}"
    (tmp_path / f"{name}.py").write_text(METHODS.format(method=method, value=value))
    argv = ["train", "--config", write_config(tmp_path), "--operator", f"{name}.Odd", "--sigma", "0.1"]
    assert refused(capsys, argv, f"Odd: expected {method} to return", value.strip("'"))
    assert not (tmp_path / "run").exists()


LATE = """
from emfast.operators import Identity

class Late(Identity):
    calls = 0

    def misfit(self, x, y, parameters):
        Late.calls += 1
        {what}
"""


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("return super().misfit(x, y, parameters) if Late.calls < 8 else None", ["Late: expected misfit to return"]),
        ("return super().misfit(x, y, parameters) if Late.calls < 8 else 1 / 0", ["late_1.py", "ZeroDivisionError"]),
    ],
)
def test_an_operator_that_fails_in_the_middle_of_a_run(what, words, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"late_{'1' if '1 / 0' in what else '0'}"
    (tmp_path / f"{name}.py").write_text(LATE.format(what=what))
    argv = ["train", "--config", write_config(tmp_path), "--operator", f"{name}.Late", "--sigma", "0.1"]
    assert main(list(map(str, argv))) == 2
    assert one_sentence(capsys.readouterr().err, words)
    assert (tmp_path / "run" / "rounds" / "000" / "row.json").exists()


def test_an_operator_whose_arguments_have_no_types(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    own = "from emfast.operators import Mask\n\nclass Own(Mask):\n    def __init__(self, share): ...\n"
    (tmp_path / "untyped.py").write_text(own)
    assert refused(capsys, ["train", "--operator", "untyped.Own"], "'share'", "does not specify a type")


def test_an_operator_that_exits(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "exits.py").write_text(OPERATOR.format(what='SystemExit("stop\\nhere")'))
    assert refused(capsys, ["train", "--config", write_config(tmp_path), "--operator", "exits.Raises"], "stop here")


@pytest.mark.parametrize("text", ["def f(:\n", "1 / 0\n"])
def test_a_module_that_cannot_be_imported(text, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"module_{len(text)}"
    (tmp_path / f"{name}.py").write_text(text)
    assert refused(capsys, ["train", "--operator", f"{name}.Operator"], f"{name}.py", "Error", "line 1", HINT)


def test_warnings_of_other_libraries_are_kept_back(monkeypatch, tmp_path, capsys):
    def warn(*args, **kwargs):
        warnings.warn("of a library", stacklevel=1)
        raise KeyError

    monkeypatch.setattr("emfast.commands.train.train", warn)
    assert refused(capsys, ["train", "--config", write_config(tmp_path)], "KeyError")


def test_a_deleted_working_directory(tmp_path):
    code = "import os, sys; os.rmdir(os.getcwd()); from emfast.cli import main; sys.exit(main(['info']))"
    (tmp_path / "gone").mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=tmp_path / "gone", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert one_sentence(done.stderr, ["working directory"]), done.stderr


# ----------------------------------------------------------------------- the command line and the config


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([""], ["''"]),
        (["--device", "xpu"], ["device", "xpu"]),
        (["--device", "meta"], ["device", "meta"]),
        (["--seed", "1" + "0" * 22], ["seed", "63 bits"]),
        (["--e_step.batch_size", "1" + "0" * 22], ["batch_size"]),
        (["--output", "r\udcff"], ["UTF-8"]),
        (["--operator", "null"], ["operator"]),
        (["--m_step", "5"], ["m_step"]),
        (["--data", "[" * 5000], ["data"]),
        (["--data", "{images: &a [*a]}"], ["data"]),
    ],
)
def test_command_line(argv, words, tmp_path, capsys):
    assert refused(capsys, ["train", "--config", write_config(tmp_path), *argv], *words)
    assert not (tmp_path / "run").exists()


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, ["YAML", "10000"]),
        (BOMB.replace("[", "{<<: [").replace("]", "]}").replace("x, x", "{x: 1}"), ["YAML", "10000"]),
        ("data: &a [*a]", ["YAML", "itself"]),
        ("data: &a {images: *a}", ["YAML", "itself"]),
        ("data: " + "[" * 100_000, ["YAML", "50 levels"]),
        ("seed: " + "1" * 5000, ["YAML"]),
        ("operator: null", ["operator", "null"]),
        ("m_step: [1]", ["m_step", "group"]),
        ("m_step: {warmup: null}", ["m_step.warmup", "null"]),
        ("sampler: {class_path: DPS, init_args: {steps: null}}", ["steps", "null"]),
        ('data: {images: "a\\0b"}', ["images", "UTF-8"]),
    ],
)
def test_config_file(text, words, tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert refused(capsys, ["train", "--config", path, "--output", tmp_path / "run"], *words)
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------- files


@pytest.mark.parametrize("flag", ["--config", "--data", "--data.images", "--data.observations", "--operator.mask"])
def test_pipes_are_not_read(flag, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.npz")
    assert refused(capsys, ["train", "--config", write_config(tmp_path), flag, tmp_path / "pipe.npz"], "a pipe")


def test_a_pipe_among_pictures(tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    os.mkfifo(tmp_path / "pictures" / "a.png")
    assert refused(capsys, ["evaluate", tmp_path / "pictures", "sample:test"], "a.png", "a pipe")


def test_a_socket(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("s.npz")
        assert refused(capsys, ["evaluate", "s.npz", "sample:test"], "s.npz", "a socket")


def huge_member(path):
    """Writes a .npz file whose array claims more values than there is memory."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000, 1, 12, 12)}".ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


def no_array(path):
    """Writes a .npz file with a member that is no array."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images", "text")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.npz", huge_member),
        ("a.npz", no_array),
        ("a.npz", lambda path: np.savez(path, images=np.zeros((4, 12, 12), np.longdouble))),
        ("a-idx3-ubyte", lambda path: path.write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12 + b"0" * 100)),
    ],
)
def test_damaged_data(name, write, tmp_path, capsys):
    write(tmp_path / name)
    assert refused(capsys, ["train", "--config", write_config(tmp_path), "--data.images", tmp_path / name], name)
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------- the folder of a run


@pytest.mark.parametrize("content", ["[1]", "null", "[" * 100_000, "1" * 5000, '{"round": "x"}', '{"round": 7}'])
@pytest.mark.parametrize("name", ["data.json", "rounds/001/row.json"])
def test_json_of_another_shape(name, content, copy, capsys):
    folder, argv = copy
    (folder / name).write_text(content)
    assert refused(capsys, argv, name if name != "data.json" or "{" not in content else "when it began")


CHOICES = ["--e_step.batch_size", "auto", "--e_step.scales", "[1.0]", "--final_rounds", "0"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run before its first round, where batch size and scale are to be chosen."""
    folder = tmp_path_factory.mktemp("begun")
    assert train(folder, *CHOICES, "--rounds", "0") == 0
    return folder / "run"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("batch_size.json", "[]"),
        ("batch_size.json", '{"batch_size": "x"}'),
        ("batch_size.json", '{"batch_size": 0}'),
        ("rounds/001/scale.json", "[]"),
        ("rounds/001/scale.json", '{"scale": []}'),
    ],
)
def test_choices_of_another_shape(name, content, begun, tmp_path, capsys):
    shutil.copytree(begun, tmp_path / "run")
    path = tmp_path / "run" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    assert main(["train", "--config", str(write_config(tmp_path)), *CHOICES]) == 2
    assert one_sentence(capsys.readouterr().err, [path.name])


@pytest.mark.parametrize(
    "line", ["[1]", '{"round": "x", "phase": "warm"}', '{"round": 1, "phase": "warm", "psnr": []}']
)
def test_metrics_of_another_shape(line, copy, capsys):
    folder, _ = copy
    (folder / "metrics.jsonl").write_text(line)
    assert refused(capsys, ["report", folder], "line 1", "metrics.jsonl")


@pytest.mark.parametrize("count", [10**15, 0, -4])
def test_a_manifest_that_counts_what_is_not_there(count, tmp_path):
    Store(tmp_path / "store", count=4, shard_size=2, identity={}).write(0, {"images": torch.zeros(2, 1, 4, 4)})
    path = tmp_path / "store" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"count": count}))
    with pytest.raises(ValueError, match=r"manifest\.json.*shards"):
        Store.open(tmp_path / "store")


def test_leftovers_of_killed_writers_do_not_count(run, tmp_path):
    killed = f".tmp-{machine()}.{os.getpid()}.0.01234567"  # an earlier process of this number
    for name in ("run", "restored/reconstructions"):
        (tmp_path / name / f"{killed}-model").mkdir(parents=True)
        (tmp_path / name / f"{killed}-data.json").write_text("{")
        (tmp_path / name / f"{killed}-model" / "config.json").write_text("{")
    assert train(tmp_path, "--rounds", "0", "--final_rounds", "0") == 0
    argv = ["restore", run, "--images", "sample:test", "--size", "12", "--limit", "4", "--sampler.steps", "2"]
    assert main([*map(str, argv), "--device", "cpu", "--output", str(tmp_path / "restored")]) == 0
    assert not list(tmp_path.rglob(".tmp-*"))


def test_names_that_look_like_markup(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "$\\frac[b]$")
    assert (
        main(["sample", str(run), "--count", "2", "--steps", "2", "--device", "cpu", "--output", "x[/x]:bug:.npz"]) == 0
    )
    assert "Images: x[/x]:bug:.npz" in capsys.readouterr().out
    metrics = tmp_path / "$\\frac[b]$" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"warm"', '"[/warm]"'))
    assert main(["report", "$\\frac[b]$"]) == 0
    out = capsys.readouterr().out
    assert "[/warm]" in out
    assert "Picture: $\\frac[b]$" in out


def test_warnings_of_our_own_are_shown_and_those_of_others_are_not():
    """Whatever library code warns of begins with a name that the command line lets through."""
    root = cli.PACKAGE.parent
    sources = [path.read_text() for folder in ("emfast", "kernels") for path in sorted((root / folder).rglob("*.py"))]
    warned = [name for text in sources for name in re.findall(r'warnings\.warn\(\s*f?"(.*?) ', text)]
    assert len(warned) == sum(text.count("warnings.warn(") for text in sources)
    with warnings.catch_warnings(record=True) as found, cli._quiet():
        for number, name in enumerate([*warned, "others:"]):
            warnings.warn(f"{name} number {number}", stacklevel=1)
    assert [str(w.message) for w in found] == [f"{name} number {number}" for number, name in enumerate(warned)]


@pytest.mark.parametrize(
    "argv",
    [
        ["sample", "nowhere", "--output"],
        ["import", "nowhere", "--output"],
        ["evaluate", "a.npz", "b.npz", "--statistics"],
        ["precompile", "--model", "nowhere", "--arch", "sm_90", "--archive"],
    ],
)
def test_an_output_that_cannot_be_written_is_told_before_it_is_computed(tmp_path, capsys, argv):
    (tmp_path / "file").write_text("")
    refused(capsys, [*argv, str(tmp_path / "file" / "out.npz")], argv[0], "to be writable", "Choose another folder")
