"""pytest's own record of a run as a table: `python -m tests.faults.report results.xml`."""

import re
import sys
from xml.etree import ElementTree


def main(path: str) -> None:
    """Prints one line a test: its name, what it was tried with, how its calls ended."""
    suites = ElementTree.parse(path).getroot()
    cases = sorted(suites.iter("testcase"), key=lambda case: (case.get("classname", ""), case.get("name", "")))
    passed = [case for case in cases if case.find("failure") is None and case.find("error") is None]
    print(f"{len(passed)} of {len(cases)} passed.\n\n| test | with | each call ended in |\n|---|---|---|")
    for case in passed:
        name, given = re.fullmatch(r"test_([^\[]*)(?:\[(.*)\])?", case.get("name", "")).groups()  # type: ignore[union-attr]  # pytest's own form
        end = next((p.get("value", "") for p in case.iter("property") if p.get("name") == "end"), "")
        print(f"| {name.replace('_', ' ')} | {(given or '').replace('-', ', ').replace('_', ' ')} | {end} |")


if __name__ == "__main__":
    main(sys.argv[1])
