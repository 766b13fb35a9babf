"""The house rules that a program can see."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = ("emfast", "kernels", "csrc", "benchmarks", "scripts", "examples")
TEXT = {".py", ".cpp", ".h", ".md", ".toml", ".yaml", ".txt", ".sh", ""}
LINES, FUNCTION, ARGUMENTS = 300, 50, 7


def files(*folders, suffixes):
    """The files of some folders of the repository, without what is built or reached through a symlink."""
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    skip = {"__pycache__", "build", "runs", "results"}
    link = ROOT / "emfast" / "kernels"
    return sorted(
        p for p in found if p.is_file() and link not in p.parents and not skip & set(p.relative_to(ROOT).parts)
    )


def name(path):
    """The path as pytest shows it."""
    return str(path.relative_to(ROOT))


def functions(tree):
    """The functions and methods of a module."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


PYTHON = files(*CODE, suffixes={".py"})
LIBRARY = [path for path in PYTHON if path.parts[len(ROOT.parts)] in ("emfast", "kernels")]


@pytest.mark.parametrize("path", files(*CODE, suffixes={".py", ".cpp", ".h"}), ids=name)
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= LINES


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_functions_are_short(path):
    """A docstring is not counted: it may be as long as it needs to be."""
    for node in functions(ast.parse(path.read_text())):
        first = node.body[0]
        documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
        length = (node.end_lineno or 0) - node.lineno + 1 - docstring
        assert length <= FUNCTION, f"{node.name}: {length} lines"


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_what_is_public_is_documented(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module"
    for node in tree.body:
        public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if public:
            assert ast.get_docstring(node), node.name
        if public and isinstance(node, ast.ClassDef):
            methods = [method for method in node.body if isinstance(method, ast.FunctionDef)]
            for method in methods:
                known = method.name.startswith("_") or method.name in ("forward", "backward")
                assert known or ast.get_docstring(method), f"{node.name}.{method.name}"


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_positional_arguments_are_few(path):
    for node in functions(ast.parse(path.read_text())):
        arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
        schema = "kernels" in path.parts or "ops" in path.parts  # the schema of the op fixes them, and their order
        assert schema or node.name.startswith("_") or len(arguments) <= ARGUMENTS, (
            f"{node.name}: {len(arguments)} positional arguments"
        )


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_the_library_neither_asserts_nor_prints(path):
    tree = ast.parse(path.read_text())
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    shell = "commands" in path.parts or path.name == "cli.py"
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    prints = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert shell or not prints, f"print in line {prints}"


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_no_op_takes_an_address(path):
    """Only `run_cpp` holds the tensor until the kernel has read it. The others compare tensors that they own."""
    knows = path.name in ("_library.py", "_files.py", "prepared.py", "graph.py")
    assert knows or "data_ptr" not in path.read_text()


def texts():
    """All text files of the repository."""
    top = [path for path in ROOT.iterdir() if path.is_file() and path.suffix in TEXT and not path.name.startswith(".")]
    return sorted(top) + files(*CODE, "tests", ".ci", suffixes=TEXT)


def test_no_path_of_a_machine():
    folders = "|".join(("work", "farm", "root", "home", "tmp"))
    pattern = re.compile(rf"(?<![\w.}}])/({folders})/")
    assert not [name(path) for path in texts() if pattern.search(path.read_text())]


def test_cpp_types_are_defined_once():
    """Two types of one name in two files link without a word, and share the code that templates make for them."""
    seen = []
    for path in files("csrc", suffixes={".cpp", ".h"}):
        shared = re.split(r"^namespace \{", path.read_text(), maxsplit=1, flags=re.MULTILINE)[0]
        seen += re.findall(r"^struct (\w+) \{", shared, flags=re.MULTILINE)
    assert len(seen) == len(set(seen)), sorted(seen)


def test_every_op_has_its_test():
    ops = [path.stem for path in (ROOT / "emfast" / "ops").glob("*.py") if not path.stem.startswith("_")]
    assert not [op for op in ops if not (ROOT / "tests" / "ops" / f"test_{op}.py").is_file()]
    for folder in ("kernels", "csrc"):
        stems = [
            p.stem for p in (ROOT / folder).glob("*") if p.suffix in (".py", ".cpp") and not p.stem.startswith("_")
        ]
        known = (*ops, *(f"{op}_backward" for op in ops), "module", "random", "checksum")
        assert not [stem for stem in stems if stem not in known], folder
