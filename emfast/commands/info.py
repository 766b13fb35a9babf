"""`emfast info`: what a report of a problem should hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from emfast.commands.display import plain_console
from emfast.diffusion.loading import model_folder
from emfast.info import info, ways


@dataclass
class Options:
    """Versions, devices, and the backend of every op.

    Args:
        json: Prints JSON instead.
        model: A model folder, or that of a run: also lists which of its modules `accelerate` knows, which it leaves as
            they are, and which way each layer is computed here, and why not others.
        check: Says in a few lines instead what would compile, download or write where on this machine, for the model if
            one is given; the exit code is 1 if anything would.
    """

    json: bool = False
    model: str | None = None
    check: bool = False


def run(options: Options, yaml: str) -> int:
    """Prints the facts; returns the exit code.

    Arguments:
        options: How.
        yaml: The options as text.
    """
    if options.check:
        return _check(options.model)
    facts = info()
    if options.model is not None:
        facts |= _model(options.model)
    if options.json:
        print(json.dumps(facts, indent=2, default=str))
        return 0
    console = plain_console()
    ops, layers = facts.pop("ops"), facts.pop("layers", [])
    for line in (*_lines(facts), *_ops(ops), *_layers(layers)):
        console.print(line, soft_wrap=True)
    return 0


def _check(model: str | None) -> int:
    """Prints what would compile, download or write here; returns 1 if anything would."""
    from emfast.compilation.ready import findings

    found = findings(None if model is None else model_folder(model))
    console = plain_console()
    for finding in found:
        console.print(f"{'ok' if finding.good else 'NOT':<5}{finding.subject:<11}{finding.text}", soft_wrap=True)
    return 0 if all(finding.good for finding in found) else 1


def _model(folder: str) -> dict[str, Any]:
    """Which modules are accelerated, which are left as they are, and the way of each layer."""
    from emfast.adapters import accelerate, report
    from emfast.diffusion.loading import read_folder

    found = read_folder(model_folder(folder), scheduled=False)
    network = accelerate(found.network)
    size = max(32, 2 ** len(network.config.block_out_channels))
    shape = found.shape if min(found.shape[1:]) else (found.shape[0], size, size)
    return {"model": report(network), "layers": ways(network, shape)}


def _lines(facts: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """The facts as aligned lines, nested ones under their name."""
    width = max((len(str(name)) for name, value in facts.items() if not isinstance(value, Mapping)), default=0) + 2
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}"
            yield from _lines(value, indent + "  ")
        else:
            items = value if isinstance(value, list | tuple) else [value]
            yield f"{indent}{name!s:<{width}}{', '.join(map(str, items)) or '-'}"


def _ops(ops: Mapping[str, Any]) -> Iterator[str]:
    """One line for each op and device: the backend that runs, and why others do not."""
    yield "ops"
    width = max(map(len, ops), default=0) + 2
    for name, devices in ops.items():
        for device, choice in devices.items():
            reasons = "".join(f"; {backend}: {reason}" for backend, reason in choice["not"].items())
            yield f"  {name:<{width}}{device}: {choice['runs']}{reasons}"


def _layers(layers: list[dict[str, Any]]) -> Iterator[str]:
    """One line for each layer: the way that is taken, and why others are not."""
    if layers:
        yield "layers, as a sampler runs them"
    width = max((len(layer["layer"]) for layer in layers), default=0) + 2
    for layer in layers:
        reasons = "".join(f"; {way}: {reason}" for way, reason in layer["not"].items())
        yield f"  {layer['layer']:<{width}}{layer['what']}: {layer['way']}{reasons}"
