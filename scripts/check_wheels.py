"""Checks what is in the wheels and the sdist of a folder: `python scripts/check_wheels.py dist`."""

import sys
import tarfile
import zipfile
from pathlib import Path

WHEEL = (
    "emfast/kernels/attention.py",  # a symbolic link in the repository
    "emfast/data/sample/",
    "emfast/commands/pages/train.txt",
    "emfast/dispatch.py",
    "emfast/_C.",
    "emfast/py.typed",
    "licenses/LICENSE",
)
NOT_IN_WHEEL = ("tests/", "csrc/", "benchmarks/", "examples/", ".cpp", ".h")
SDIST = ("csrc/emfast.h", "emfast/kernels/attention.py", "setup.py", "LICENSE", "README.md")


def main(folder: str) -> None:
    """Ends with a sentence for the first thing that is missing, or should be."""
    wheels, sdists = sorted(Path(folder).glob("*.whl")), sorted(Path(folder).glob("*.tar.gz"))
    if not wheels or not sdists:
        sys.exit(f"check_wheels: expected {folder} to hold wheels and an sdist, got {len(wheels)} and {len(sdists)}")
    for path in wheels:
        names = zipfile.ZipFile(path).namelist()
        check(path, names, WHEEL)
        surplus = [name for name in names if name.startswith(NOT_IN_WHEEL) or name.endswith(NOT_IN_WHEEL)]
        if surplus:
            sys.exit(f"check_wheels: expected {path.name} without {surplus[0]}")
        if "manylinux" not in path.name:
            sys.exit(f"check_wheels: expected a manylinux wheel, got {path.name}")
    for path in sdists:
        with tarfile.open(path) as archive:
            check(path, archive.getnames(), SDIST)
    for path in (*wheels, *sdists):
        print(f"{path.name}  {path.stat().st_size / 1e6:.1f} MB")


def check(path: Path, names: list[str], parts: tuple[str, ...]) -> None:
    """Ends with a sentence if a part is in none of the names."""
    for part in parts:
        if not any(part in name for name in names):
            sys.exit(f"check_wheels: expected {path.name} to hold {part}, got {len(names)} files without it")


if __name__ == "__main__":
    main(*sys.argv[1:])
