"""What the documentation names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLANNED = {"emfast/dispatch.py"}
NAMED = re.compile(r"`((?:emfast|kernels|csrc|tests|benchmarks|docs|examples)/[\w./]*)`")


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_files_that_are_named_exist(path):
    names = set(NAMED.findall(path.read_text())) - PLANNED
    assert len(names) > 5
    missing = [name for name in sorted(names) if "X" not in name and not (ROOT / name).exists()]
    assert not missing


def test_every_station_of_the_picture_exists():
    (picture,) = re.findall(r"```mermaid\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    names = {name for name in re.findall(r"[\w/]+(?:\.py|/)(?=[\s,\"\]])", picture) if f"emfast/{name}" not in PLANNED}
    missing = [name for name in sorted(names) if not ((ROOT / "emfast" / name).exists() or (ROOT / name).exists())]
    assert len(names) > 15
    assert not missing
