"""`kumiai`: the command. Each layer registers its own subcommands by the entry-point group `kumiai.commands`."""

import sys
from importlib.metadata import entry_points

import typer

from observability.problems import Problem


def main() -> None:
    """Runs a command; an expected failure is one plain line and exit code 1."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Generative AI that municipalities share.",
    )
    for entry in sorted(entry_points(group="kumiai.commands"), key=lambda e: e.name):
        entry.load()(app)
    try:
        app(prog_name="kumiai")
    except Problem as problem:
        detail = f"　{problem.detail}" if problem.detail and problem.detail != problem.title else ""
        print(f"kumiai: {problem.title}{detail}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
