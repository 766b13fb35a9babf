"""What a function takes, returns and raises is said where it is read.

The rule: each argument of a public function or method is described under `Arguments:` of its docstring, or, where
several share it, once in the docstring of their class, of a class that it inherits from, or of their module or its
package. Free of it are a function with one argument, of which the first sentence speaks; what has the signature of
another library's (forward, backward, accelerated); and the specification of an op, whose arguments are the op's.
"""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import emfast

PACKAGE = Path(emfast.__file__).parent
PLACES = ("adapters", "data", "diffusion", "em", "evaluation", "nn", "operators", "reporting", "samplers")
FOREIGN = ("forward", "backward", "accelerated")
# What says that something is returned: a verb, or that it is a block or a condition; "See" leads to where it is said.
RETURNED = re.compile(r"[Rr]eturns|Yields|Whether|block|context|See |specification|Undoes|told that")


def functions():
    """The functions that the packages export, by name, and those of `emfast` itself."""
    found = {name: getattr(emfast, name) for name in ("accelerate", "restore", "report", "train", "backend", "graphs")}
    for place in PLACES:
        module = importlib.import_module(f"emfast.{place}")
        found |= {f"{place}.{name}": getattr(module, name) for name in getattr(module, "__all__", ())}
    return {name: value for name, value in found.items() if inspect.isfunction(value)}


@pytest.mark.parametrize("name", sorted(functions()))
def test_what_is_exported_says_what_it_takes_returns_and_raises(name):
    function = functions()[name]
    text, signature = inspect.getdoc(function) or "", inspect.signature(function)
    taken = [each.name for each in signature.parameters.values() if each.kind != each.VAR_KEYWORD]
    assert len(taken) < 2 or not missing(taken, text)
    returns = signature.return_annotation not in ("None", None, inspect.Signature.empty)
    assert not returns or RETURNED.search(text)
    raising = re.search(r"^    +(raise \w+\(|check\w*\()", inspect.getsource(function), re.MULTILINE)
    assert not raising or "Raises" in text


def missing(names, text):
    """The names that have no entry in a docstring: at the beginning of a line, alone or with others, before a colon."""
    entries = re.findall(r"^ +([\w, ]+): ", text, re.MULTILINE)
    described = {name for entry in entries for name in entry.split(", ")}
    return [name for name in names if name not in described]


TREES = {
    path: ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
    if PACKAGE / "kernels" not in path.parents
}
CLASSES = {node.name: node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def ancestry(node):
    """A class and those of emfast that it inherits from."""
    bases = [CLASSES[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in CLASSES]
    return [node, *(each for base in bases if base is not node for each in ancestry(base))]


def public(node, owners=()):
    """The public functions and methods of a module or class, each with the classes that may speak for it."""
    for each in node.body:
        if isinstance(each, ast.ClassDef) and not each.name.startswith("_"):
            yield from public(each, ancestry(each))
        elif isinstance(each, ast.FunctionDef) and not each.name.startswith("_"):
            yield each, owners


@pytest.mark.parametrize("path", TREES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_argument_is_described(path):
    package = TREES.get(path.parent / "__init__.py")
    around = [ast.get_docstring(tree) or "" for tree in (TREES[path], package) if tree is not None]
    found = []
    for node, owners in public(TREES[path]):
        texts = [ast.get_docstring(node) or "", *around]
        for owner in owners:
            texts.append(ast.get_docstring(owner) or "")
            texts += [ast.get_docstring(each) or "" for each in public_methods(owner, node.name)]
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        names = [name for name in names if name not in ("self", "cls") and not name.startswith("_")]
        specification = texts[0].startswith("The specification")
        if len(names) > 1 and node.name not in FOREIGN and not specification:
            found += [f"{node.name}: {name}" for name in missing(names, "\n".join(texts))]
    assert not found


def public_methods(owner, name):
    """The methods of a name that a class has."""
    return [each for each in owner.body if isinstance(each, ast.FunctionDef) and each.name == name]


@pytest.mark.parametrize("path", TREES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_is_returned_is_said(path):
    found = []
    for node, owners in public(TREES[path]):
        kind = ast.unparse(node.returns) if node.returns else "None"
        described = any(
            RETURNED.search(ast.get_docstring(each) or "")
            for owner in owners
            for each in public_methods(owner, node.name)
        )
        silent = (
            kind in ("None", "NoReturn") or node.name in FOREIGN or "property" in map(ast.unparse, node.decorator_list)
        )
        if not silent and not described and not RETURNED.search(ast.get_docstring(node) or ""):
            found.append(f"{node.name}: {ast.get_docstring(node)}")
    assert not found
