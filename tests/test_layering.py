"""The layers of the design: imports point down only, and each heavy package has its place."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "emfast"

LAYERS = (
    ("_check", "_json", "_process", "_safetensors"),
    ("dispatch", "_classes", "_leftovers"),
    ("_files", "_library", "_memory", "_yaml"),
    ("random", "graph", "_records", "_settings", "_e_step_config", "_m_step_config"),
    ("ops", "data", "evaluation"),
    ("operators", "diffusion", "nn"),
    ("samplers", "adapters", "presets"),
    ("config",),
    ("em",),
    ("reporting", "info", "compilation"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# Files that may import a package while they are imported themselves; all others do so where they use it.
HEAVY = {
    "diffusers",
    "matplotlib",
    "PIL",
    "torchmetrics",
    "accelerate",
    "rich",
    "triton",
    "h5py",
    "yaml",
}


def files():
    """The modules of the package, without the kernels behind their symlink."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if "kernels" not in path.relative_to(PACKAGE).parts]


def unit(path):
    """The top-level name that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(tree, inside_functions=True):
    """Yields the dotted names that are imported, but for those only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield module
            if module == "emfast":
                yield from (f"emfast.{alias.name}" for alias in node.names)
        elif inside_functions or not isinstance(node, ast.FunctionDef):
            yield from imports(node, inside_functions)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = unit(path)
    if own == "__init__":
        return
    assert own in RANK, f"{own} has no layer: add it to LAYERS, and to the map of the design"
    for name in imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] != "emfast" or len(parts) == 1 or parts[1] in ("_C", "kernels", "__version__"):
            continue
        other = parts[1]
        allowed = other == own or RANK[other] < RANK[own]
        assert allowed, f"{path.relative_to(ROOT)} imports {name}, which is not below {own}"


def test_kernels_know_nothing_of_the_package():
    paths = sorted((ROOT / "kernels").glob("*.py"))
    for path in paths:
        tops = {name.split(".")[0] for name in imports(ast.parse(path.read_text()))}
        foreign = tops - sys.stdlib_module_names - {"triton", "torch"} - {sibling.stem for sibling in paths}
        assert not foreign, f"{path.name} imports {sorted(foreign)}"


def test_csrc_knows_nothing_of_torch():
    for path in sorted((ROOT / "csrc").glob("*")):
        includes = [line for line in path.read_text().splitlines() if line.startswith("#include")]
        assert not [line for line in includes if "torch" in line or "ATen" in line or "c10" in line], path.name


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_where_they_are_used(path):
    if unit(path) in ("commands", "cli"):  # reached only through the chosen subcommand
        return
    tops = {name.split(".")[0] for name in imports(ast.parse(path.read_text()), inside_functions=False)}
    assert not tops & HEAVY


def test_one_user_of_torch_library():
    users = [path.name for path in files() if "torch.library." in path.read_text()]
    assert set(users) <= {"_library.py"}
