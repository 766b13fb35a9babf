"""What users reach by `import emfast` says what it takes and what it returns."""

import importlib
import inspect

import pytest

import emfast

PLACES = ("adapters", "data", "diffusion", "em", "evaluation", "nn", "operators", "reporting", "samplers")


def functions():
    """The functions that the packages export, by name, and those of `emfast` itself."""
    found = {name: getattr(emfast, name) for name in ("accelerate", "restore", "report", "train", "backend", "graphs")}
    for place in PLACES:
        module = importlib.import_module(f"emfast.{place}")
        found |= {f"{place}.{name}": getattr(module, name) for name in getattr(module, "__all__", ())}
    return {name: value for name, value in found.items() if inspect.isfunction(value)}


@pytest.mark.parametrize("name", sorted(functions()))
def test_it_says_what_it_takes_and_returns(name):
    function = functions()[name]
    text, signature = inspect.getdoc(function) or "", inspect.signature(function)
    taken = [each for each in signature.parameters.values() if each.kind != each.VAR_KEYWORD]
    if len(taken) > 1:
        assert "Arguments:" in text
        for each in taken:
            assert each.name in text, each.name
    returns = signature.return_annotation not in ("None", None, inspect.Signature.empty)
    assert not returns or "eturns" in text or "Yields" in text or "context" in text or "block" in text
