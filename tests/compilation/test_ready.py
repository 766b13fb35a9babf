"""`emfast info --check`: what would compile, download or write here, and the exit code."""

import json

import pytest
from test_precompile import model, network  # noqa: F401 (a fixture)

from emfast.cli import main
from emfast.compilation import ready
from emfast.compilation.precompile import write_archive
from emfast.kernels import _archive, _manifest


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """No variables of this machine's."""
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.delenv(_archive.VARIABLE, raising=False)
    monkeypatch.setattr(ready, "triton_error", lambda: None)


def only(model=None, architecture=90):  # noqa: F811
    """The one finding about kernels."""
    (found,) = ready.kernels(model, architecture)
    return found


def cache(folder, monkeypatch, **changes):
    """A cache with a manifest, named in the environment."""
    folder.mkdir()
    content = {"architectures": ["90"], "calls": {"90": []}, "kernels": {"normal": 2}, "launchers": True}
    _manifest.write(folder, {**content, **changes})
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))


def test_kernels_that_would_be_compiled():
    assert only(architecture=None).good
    found = only()
    assert not found.good
    assert "would be compiled" in found.text


def test_a_cache_that_fits_and_some_that_do_not(model, tmp_path, monkeypatch):  # noqa: F811
    cache(tmp_path / "whole", monkeypatch)
    assert only() == ("kernels", f"2 for sm_90 in {tmp_path / 'whole'}: nothing compiles", True)
    assert "to be for sm_80, got sm_90" in only(architecture=80).text
    found = only(model)
    assert not found.good
    assert "calls of the model" in found.text
    cache(tmp_path / "all", monkeypatch, calls={"90": sorted(ready._calls(model))})
    assert only(model).good
    cache(tmp_path / "without", monkeypatch, launchers=False)
    assert "made without a C compiler" in only().text


def test_an_archive_is_unpacked_once(tmp_path, monkeypatch):
    cache(tmp_path / "cache", monkeypatch)
    write_archive(tmp_path / "cache", tmp_path / "kernels.tar")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv(_archive.VARIABLE, str(tmp_path / "kernels.tar"))
    found = only()
    assert not found.good
    assert str(_archive.target(str(tmp_path / "kernels.tar"))) in found.text
    _archive.folder()
    assert only().good


@pytest.mark.parametrize("fonts", [True, False])
def test_the_command_and_its_exit_code(fonts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("matplotlib.get_cachedir", lambda: str(tmp_path))
    monkeypatch.setattr(_archive, "architecture", lambda: None)
    if fonts:
        (tmp_path / "fontlist-v390.json").write_text(json.dumps({}))
    assert main(["info", "--check"]) == (0 if fonts else 1)
    out = capsys.readouterr().out
    assert len(out.strip().split("\n")) == 5
    assert out.startswith("ok   CPU")
    assert ("NOT  fonts" in out) != fonts
