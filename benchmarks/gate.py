"""--require: conditions on figures, for CI. What was measured is held against what is required."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from enet_deploy.errors import InputError, RequirementError

from .measure.parity import Accuracy
from .result import Result
from .verdict import ACCURACY, FIGURES, PARITY, TRUTH, figures

_NEEDS_REFERENCE = {*PARITY, *(f"{name}_drop" for name in ACCURACY)}
_SHARES = {"agreement", "boundary_flips", "interior_flips", "unpool_flips", *ACCURACY}
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip


@dataclass(frozen=True)
class Requirement:
    """One condition of --require: `figure comparison bound`, for example miou_drop <= 0.3."""

    figure: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.figure}{self.comparison}{self.bound:g}"

    def holds(self, value: float) -> bool:
        return _COMPARISONS[self.comparison](value, self.bound)


@dataclass(frozen=True)
class Judged:
    """A condition, and what was measured of one runner."""

    runner: str
    requirement: Requirement
    value: float

    @property
    def holds(self) -> bool:
        return self.requirement.holds(self.value)


def parse_requirements(text: str, known: Collection[str] = FIGURES) -> list[Requirement]:
    """ "miou_drop<=0.3,p90_ms<=20" -> conditions. Raises InputError for text of another form or an unknown figure."""
    return [_parse_requirement(part, known) for part in text.split(",")]


def _parse_requirement(text: str, known: Collection[str]) -> Requirement:
    match = re.fullmatch(r"\s*(\w+)\s*(<=|>=|<|>)\s*(-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*", text)
    if match is None:
        raise InputError(f"--require '{text}', expected FIGURE<=NUMBER or FIGURE>=NUMBER, such as miou_drop<=0.3")
    figure, comparison, bound = match.groups()
    if figure not in known:
        raise InputError(f"--require {figure}, expected one of {', '.join(known)}")
    requirement = Requirement(figure, comparison, float(bound))
    if math.isinf(requirement.bound):
        raise InputError(f"--require {figure}{comparison}{bound}, expected a finite number")
    if figure in _SHARES and not 0 <= requirement.bound <= 1:
        raise InputError(f"--require {requirement}, expected a share from 0 to 1, such as 0.999")
    return requirement


def require_measurable(requirements: Sequence[Requirement], truth: bool, reference: bool) -> None:
    """Raise InputError for a condition on a figure that the run will not measure."""
    for requirement in requirements:
        if requirement.figure in TRUTH and not truth:
            raise InputError(f"--require {requirement} needs the truth; give --data too")
        if requirement.figure in _NEEDS_REFERENCE and not reference:
            raise InputError(f"--require {requirement} needs the weights that all artifacts came from; see --weights")


def judged_figures(results: Sequence[Result], reference: Accuracy | None) -> dict[str, dict[str, float | None]]:
    """Runner -> its figures that can be required.

    PyTorch fp32, which the others are compared with, is exempt, unless nothing else ran. The baseline has no speedup:
    it is no faster than itself.
    """
    found = {}
    for result in [each for each in results if (each.backend, each.precision) != ("torch", "fp32")] or results:
        known = figures(result, reference)
        if result is results[0]:
            known = {name: value for name, value in known.items() if not name.startswith("speedup")}
        found[result.name] = known
    return found


def judge(found: Mapping[str, Mapping[str, float | None]], requirements: Sequence[Requirement]) -> list[Judged]:
    """Hold every runner's figures against every condition; a figure that a runner lacks is not required of it.

    Args:
        found: runner -> figure -> value.

    Raises InputError if a value is None: it was not measured. Raises it too for a condition that no runner has the
    figure of: it would always hold.
    """
    judged = []
    for name, figures_of in found.items():
        for requirement in requirements:
            if requirement.figure not in figures_of:
                continue
            value = figures_of[requirement.figure]
            if value is None:
                raise InputError(f"--require {requirement}: {name} has no {requirement.figure}")
            judged.append(Judged(name, requirement, value))
    idle = [each for each in requirements if all(each.figure not in figures_of for figures_of in found.values())]
    if idle:
        raise InputError(
            f"--require {idle[0]} is held against no runner: the only one is the baseline; name the weights before it"
        )
    return judged


def require_all(judged: Sequence[Judged]) -> None:
    """Raise RequirementError with every condition that does not hold."""
    broken = [each for each in judged if not each.holds]
    if broken:
        raise RequirementError(
            "; ".join(
                f"{each.runner} has {each.requirement.figure} {each.value:.6g}, required {each.requirement}"
                for each in broken
            )
        )
