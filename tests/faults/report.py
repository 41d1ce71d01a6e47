"""pytest's own record of a run as a table: `python -m tests.faults.report results.xml`."""

import re
import sys
from xml.etree import ElementTree

ROUND = re.compile(r"round\d+")


def main(path: str) -> None:
    """Prints one line a test: where it is, its name, what it was tried with and how often, how its calls ended."""
    cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    passed = [case for case in cases if all(case.find(word) is None for word in ("failure", "error", "skipped"))]
    print(
        f"{len(passed)} of {len(cases)} runs passed.\n\n| in | test | with | runs | each call ended in |\n|---|---|---|---|---|"
    )
    lines: dict[tuple[str, str, str], list[dict[str | None, str]]] = {}
    for case in passed:
        name, given = re.fullmatch(r"test_([^\[]*)(?:\[(.*)\])?", case.get("name", "")).groups()  # type: ignore[union-attr]  # pytest's own form
        trial = ", ".join(part for part in (given or "").split("-") if part and not ROUND.fullmatch(part))
        place = case.get("classname", "").removeprefix("tests.").replace(".", "/")
        told = {p.get("name"): p.get("value", "") for p in case.iter("property")}
        lines.setdefault((place, name.replace("_", " "), trial.replace("_", " ")), []).append(told)
    for (place, name, trial), runs in sorted(lines.items()):
        seconds = [float(told["seconds"]) for told in runs if "seconds" in told]
        end = f"after at most {max(seconds):.2f} s" if seconds else runs[0].get("end", "")
        print(f"| {place} | {name} | {trial} | {len(runs)} | {end} |")


if __name__ == "__main__":
    main(sys.argv[1])
