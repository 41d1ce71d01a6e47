"""Writes the facts of an isolation report (`kumiai isolation-report`, its JSON) as Markdown: `python -m tests.security.report FILE`."""

import json
import sys
from pathlib import Path
from typing import Any


def markdown(facts: dict[str, Any]) -> str:
    lines = [
        f"- database: {facts['database']}",
        f"- addresses: {facts['pages']} of the portal, {facts['calls']} of the gateway, found in their own descriptions",
        "",
        f"**{facts['total']:,} tries, {len(facts['findings'])} got through, {len(facts['uncovered'])} addresses or parameters not covered.**",
        f"Forged credentials: {facts['tokens_total']:,}, of them {facts['by_wire']} over the wire too; accepted: {facts['accepted']}.",
        f"Each wall alone, on {facts['tables']} tables and every address: {facts['past_walls']} rows or words of the other town reached.",
        f"With neither, so that the trial is known to notice: {facts['control_through']} of {facts['control']} tries got through.",
    ]
    for heading, rows in (("who", "people"), ("how", "ways"), ("forged credentials", "tokens")):
        lines += [
            "",
            f"| {heading} | tries |",
            "|---|---|",
            *(f"| {words} | {count:,} |" for words, count in facts[rows]),
        ]
    lines += ["", "| the wall that was left | tries on addresses | tries on tables |", "|---|---|---|"]
    lines += [f"| {words} | {addresses:,} | {tables:,} |" for words, addresses, tables in facts["walls"]]
    lines += ["", "## Not covered", "", *(f"- {line}" for line in facts["not_covered"])]
    lines += [f"- {' '.join(finding)}" for finding in facts["findings"]]
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))
