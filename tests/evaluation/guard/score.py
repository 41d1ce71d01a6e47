"""How much of what is there is found, and how much of what is found is there, kind by kind."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from gateway.guard.findings import Finding
from gateway.guard.inspection import inspect
from tests.evaluation.guard.samples import Sample


@dataclass(frozen=True, slots=True)
class Score:
    kind: str
    found: int
    missed: int
    wrong: int

    @property
    def recall(self) -> float:
        return self.found / max(1, self.found + self.missed)

    @property
    def precision(self) -> float:
        return self.found / max(1, self.found + self.wrong)


def covers(finding: Finding, kind: str, start: int, end: int) -> bool:
    """The right kind, and all but three characters of it (a title or a bracket): else part of it would be sent.

    What is said of somebody is not taken out but weighed: any part of it does.
    """
    overlap = min(finding.end, end) - max(finding.start, start)
    return finding.kind == kind and overlap >= max(1, 0 if kind == "sensitive" else end - start - 3)


def score(samples: Iterable[Sample]) -> tuple[list[Score], list[str]]:
    """The scores and, for a person to read, one line for each miss and each false alarm."""
    found: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    notes = []
    for sample in samples:
        findings = inspect(sample.text)
        for kind, start, end in sample.truth:
            if any(covers(f, kind, start, end) for f in findings):
                found[kind] += 1
            else:
                missed[kind] += 1
                notes.append(f"missed {kind}: {sample.text[start:end]!r} in {sample.text!r}")
        for f in findings:
            if not any(f.kind == kind and f.start < end and start < f.end for kind, start, end in sample.truth):
                wrong[f.kind.value] += 1
                notes.append(f"false {f.kind.value}: {sample.text[f.start : f.end]!r} in {sample.text!r}")
    kinds = sorted(found.keys() | missed.keys() | wrong.keys())
    return [Score(k, found[k], missed[k], wrong[k]) for k in kinds], notes
