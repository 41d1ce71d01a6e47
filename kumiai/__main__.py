"""`kumiai`: the command. Each layer registers its own subcommands by the entry-point group `kumiai.commands`."""

import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

import typer

from kumiai.known_names import Names
from kumiai.loading import loading
from observability.problems import Problem


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits: 0 when done, 1 with a plain line or two when it cannot be, 2 when it was typed wrongly."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Generative AI that municipalities share.",
    )
    words = sys.argv[1:] if arguments is None else list(arguments)
    # The composition root's own commands start processes: they come first, and loading stops at the one wanted,
    # because what the other layers load takes seconds on a small machine.
    for entry in sorted(entry_points(group="kumiai.commands"), key=lambda e: (e.name != "kumiai", e.name)):
        with loading():
            register = entry.load()
        register(app)
        names = {c.name for c in app.registered_commands} | {g.name for g in app.registered_groups}
        if words and words[0] in names:
            break
    try:
        app(words, prog_name="kumiai", obj=Names())
    except Problem as problem:
        detail = f"　{problem.detail}" if problem.detail and problem.detail != problem.title else ""
        print(f"kumiai: {problem.title}{detail}", file=sys.stderr)
        if problem.hint:
            print(f"  {problem.hint}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
