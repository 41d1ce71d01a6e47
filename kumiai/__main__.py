"""`kumiai`: the command. Each layer registers its own subcommands by the entry-point group `kumiai.commands`."""

import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

import typer

from observability.problems import Problem


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits: 0 when done, 1 with one plain line when it cannot be, 2 when it was typed wrongly."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Generative AI that municipalities share.",
    )
    for entry in sorted(entry_points(group="kumiai.commands"), key=lambda e: e.name):
        entry.load()(app)
    try:
        app(arguments, prog_name="kumiai")
    except Problem as problem:
        detail = f"　{problem.detail}" if problem.detail and problem.detail != problem.title else ""
        print(f"kumiai: {problem.title}{detail}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
