"""The picture of the architecture shows files that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_station_of_the_picture_exists():
    (picture,) = re.findall(r"```mermaid\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    names = set(re.findall(r"[\w/]+(?:\.py|/)(?=[\s,\"\]])", picture))
    missing = [name for name in sorted(names) if not ((ROOT / "emfast" / name).exists() or (ROOT / name).exists())]
    assert len(names) > 15
    assert not missing
