"""The documentation: every link leads somewhere, every code block of the how-tos runs as it stands, at toy size."""

import ast
import contextlib
import dataclasses
import importlib
import inspect
import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import emfast
from emfast.cli import main
from emfast.commands import COMMANDS
from emfast.config import EvaluationConfig, GaussianConfig, MStepConfig, NetworkConfig
from emfast.samplers import MMPS

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
NETWORK = {"channels": [8, 16], "attention": [1], "groups": 4, "head_dim": 8, "layers": 1}
STEPS = {"initial_steps": 2, "steps": 2, "final_steps": 2, "batch_size": 8}
TOY = {  # what makes a command small enough for a test
    "train": "--e_step.batch_size 8 --evaluation.samples 0 --rounds 1 --final_rounds 0 --sampler.steps 2"
    " --data.limit 12 --gaussian.rounds 1 --gaussian.rank 4 --device cpu --network.channels [8,16]"
    " --network.attention [1] --network.groups 4 --network.head_dim 8 --network.layers 1"
    " --m_step.batch_size 8 --m_step.steps 2 --m_step.initial_steps 2",
    "restore": "--sampler.steps 2 --limit 3 --device cpu --batch_size 8",
    "sample": "--count 4 --steps 2 --device cpu",
}


def name(path):
    return str(path.relative_to(ROOT))


def blocks(path, *languages):
    """The code blocks of a page in some languages, in their order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)
    return [(language, text) for language, text in found if language in languages]


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [link.partition("#")[0] for link in links if not link.startswith(("http:", "https:", "#"))]
    assert not [link for link in local if not (path.parent / link).exists()]


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=name)
def test_files_that_are_named_exist(path):
    named = re.findall(r"`((?:examples|benchmarks|emfast|csrc|kernels|scripts|tests)/[\w./-]*\w)`", path.read_text())
    assert not [each for each in named if "X." not in each and not (ROOT / each).exists()]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text()
    ours = [path.relative_to(ROOT / "docs").as_posix() for path in PAGES]
    assert not [each for each in ours if each not in menu]


def test_the_site_is_built_without_a_warning(tmp_path):
    for package in ("mkdocs", "mkdocstrings"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "howto/data.html").is_file()
    commands, samplers = ((tmp_path / f"api/{page}.html").read_text() for page in ("commands", "samplers"))
    assert "--m_step.learning_rate NUMBER" in commands
    assert "the mean misfit of every candidate" in samplers
    assert ".. math" not in samplers


def test_all_that_is_offered_has_its_place_in_the_api():
    text = "".join(path.read_text() for path in (ROOT / "docs/api").glob("*.md"))
    described = {line.split(".")[-1] for line in re.findall(r"^::: (emfast\..*)$", text, re.MULTILINE)}
    offered = {name for name in dir(emfast) if name[0] != "_" and not inspect.ismodule(getattr(emfast, name))}
    for place in ("data", "diffusion", "em", "evaluation", "nn", "operators", "reporting", "samplers"):
        package = importlib.import_module(f"emfast.{place}")
        found = {name: getattr(package, name) for name in getattr(package, "__all__", dir(package)) if name[0] != "_"}
        offered |= {name for name, value in found.items() if inspect.isclass(value) or inspect.isfunction(value)}
    assert offered - described == {"Row", "TYPE_CHECKING"}  # of type checkers
    assert not [name for name in COMMANDS if f"<!-- emfast {name} --help -->" not in text]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the pages speak of."""
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    pytest.importorskip("h5py", reason="h5py is not installed")
    folder, generator = tmp_path_factory.mktemp("docs"), np.random.default_rng(0)
    for each in ("raw", "masks", "clean", "new", "new-masks"):
        (folder / each).mkdir()
        for index in range(12):
            array = generator.integers(300, 3000, (13, 11)).astype(np.uint16)
            array = (array > 1000).astype(np.uint8) * 255 if "masks" in each else array
            tifffile.imwrite(folder / each / f"a{index:02d}.tif", array)
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


@pytest.fixture
def inside(folder, monkeypatch):
    """The folder as the working directory, with a toy of a training behind `emfast.train`."""
    monkeypatch.chdir(folder)
    train = emfast.train

    def toy(config, callback=None, **given):
        small = {"network": NetworkConfig(**NETWORK), "m_step": MStepConfig(**STEPS), "rounds": 1, "final_rounds": 0}
        small |= {"gaussian": GaussianConfig(4, 1), "evaluation": EvaluationConfig(samples=0)}
        data = dataclasses.replace(config.data, limit=12)
        sampler = dataclasses.replace(config.sampler, steps=2) if config.sampler else MMPS(steps=2)
        return train(dataclasses.replace(config, data=data, sampler=sampler, device="cpu", **small), callback, **given)

    monkeypatch.setattr(emfast, "train", toy)
    return folder


def run_command(line):
    """Runs a line of a shell block, at toy size."""
    words = shlex.split(line, comments=True)
    assert words[0] == "emfast", f"{line}: not a command of emfast; use ```text for what is not to be run"
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main(words[1:] + TOY.get(words[1], "").split())
    assert code == 0, f"{line}: {output.getvalue()}"


RUNNING = [path for path in [ROOT / "README.md", *PAGES] if blocks(path, "python", "sh")]


def run_page(path):
    """Runs all blocks of a page, those of Python in one namespace."""
    namespace = {"__name__": "page"}
    for language, text in blocks(path, "python", "sh"):
        if language == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                run_command(line)
        else:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(ast.parse(text), name(path), "exec"), namespace)


# In this order: later pages speak of the run of the first.
@pytest.mark.parametrize("path", sorted(RUNNING, key=lambda path: path.stem != "data"), ids=name)
def test_code_blocks_run(path, inside):
    first = next(page for page in RUNNING if page.stem == "data")
    if path != first and not (inside / "runs/mine").exists():  # that test went to another process
        run_page(first)
    run_page(path)


def test_the_commands_of_the_readme_run(inside):
    lines = re.findall(
        r"^    (emfast (?:import|train|restore|report) .*)$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert len(lines) == 3
    for line in lines:
        run_command(line)
