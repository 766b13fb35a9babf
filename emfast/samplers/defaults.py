"""The sampler to take where none is named, and what a config names by its arguments alone."""

from typing import Any

from emfast._check import check
from emfast._classes import class_at
from emfast._settings import Tree, choice
from emfast.operators import Operator
from emfast.operators.base import only_simulates
from emfast.operators.identity import is_identity
from emfast.samplers.base import Sampler
from emfast.samplers.conditional import Conditional
from emfast.samplers.mmps import MMPS
from emfast.samplers.prior import Prior
from emfast.samplers.reverse_from_observation import ReverseFromObservation


def default_sampler(kind: type[Operator]) -> Sampler:
    """Returns the sampler with the best quality per network evaluation for a class of operators.

    Chosen from the table of `benchmarks/samplers.py`: of those whose samples vary as much as the posterior's do, which
    EM needs, the one closest to the truth.

    Arguments:
        kind: The class of the operator.
    """
    if issubclass(kind, Operator) and only_simulates(kind):
        return Conditional()
    return ReverseFromObservation() if is_identity(kind) else MMPS()


def check_posterior(sampler: Sampler, function: str) -> None:
    """Raises a ValueError if a sampler does not read the observations: EM would learn nothing from them.

    Arguments:
        sampler: The sampler of an E-step.
        function: The public function the caller used.
    """
    none = type(sampler) is Sampler or isinstance(sampler, Prior)
    fix = "Take MMPS, or leave the sampler out"
    check(not none, function, "sampler", "to sample the posterior of an observation", type(sampler), fix)


def check_fits(sampler: Sampler | None, operator: Operator | None, sigma: float | str, function: str) -> None:
    """Raises a ValueError if a sampler, or an unknown noise level, is none for an operator.

    Arguments:
        sampler: The sampler of an E-step.
        operator: The operator; None: it is not known yet.
        sigma: The noise level, or "auto".
        function: The public function the caller used.
    """
    if isinstance(sampler, ReverseFromObservation):
        good, fix = is_identity(type(operator)), "Use another sampler"
        check(good, function, "operator", "to be Identity for this sampler", type(operator), fix)
        fix = "Name the noise of the observations with --sigma, or another sampler"
        check(isinstance(sigma, str) or sigma > 0, function, "sigma", "to be > 0 for this sampler", sigma, fix)
    if isinstance(operator, Operator) and operator.is_simulated:
        name, good = type(operator).__name__, isinstance(sampler, Conditional)
        what = f"to be Conditional for {name}, which can only be simulated"
        check(good, function, "sampler", what, type(sampler), "Leave the sampler out")
        check(sigma != "auto", function, "sigma", f"to be given for {name}, which can only be simulated", sigma)


def usual_sampler(operator: Tree | None) -> Tree:
    """Returns the best sampler for an operator, as a config names it.

    Arguments:
        operator: The setting of the operator; None, or one whose class is not found, for any.
    """
    kind = class_at(Operator, (operator or {}).get("class_path", "Operator"))
    known = isinstance(kind, type) and issubclass(kind, Operator)
    return {"class_path": type(default_sampler(kind if known else Operator)).__name__, "init_args": {}}


def usual_classes(given: Tree) -> Tree:
    """Returns the classes of operator and sampler where only arguments of them are given; nothing where none are.

    Arguments:
        given: What a config gives.
    Raises:
        ValueError: If it takes the operator away from images that are to be observed.
    """
    data: Any = given.get("data")
    observed = isinstance(data, dict) and data.get("observations") not in (None, "null")
    none = "operator" in given and given["operator"] is None and not observed
    check(not none, "config", "operator", "to have a value", "null", "Leave it out for its default")
    found: Tree = {}
    operator, sampler = choice(given.get("operator")), choice(given.get("sampler"))
    if isinstance(operator, dict) and "class_path" not in operator:
        found["operator"] = operator = {"class_path": "Mask", "init_args": {"missing": 0.6}}
    if isinstance(sampler, dict) and "class_path" not in sampler:
        found["sampler"] = usual_sampler(operator or {"class_path": "Operator" if observed else "Mask"})
    return found
