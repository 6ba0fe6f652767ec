"""`bptt doctor`: what to put into a bug report."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for a bug report.")] = False,
) -> None:
    """Say what is installed, which backends can run and why others cannot, and check those.

    The exit status is 1 where a check fails.
    """
    import json

    from ..doctor import report

    found = report()
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        _show(found)
    if not all(check["fine"] for check in found["checks"]):
        raise typer.Exit(1)


def _show(found: dict[str, Any]) -> None:
    from rich.table import Table

    from .terminal import console

    screen = console()
    narrow: dict[str, Any] = {"box": None, "padding": (0, 2, 0, 0)}
    for facts in found["facts"].values():
        table = Table(show_header=False, **narrow)
        for name, value in {**facts["device"], **facts["versions"]}.items():
            table.add_row(name, str(value))
        screen.print(table)
        screen.print()
    if found["settings"]:
        said = ", ".join(f"{name}={value}" for name, value in found["settings"].items())
        screen.print(f"Set in the environment: {said}\n", soft_wrap=True, markup=False)
    backends = Table("backend", "", "what it runs, or why it cannot", **narrow)
    for one in found["backends"]:
        mark = "[green]yes[/]" if one["available"] else "[yellow]no[/]"
        backends.add_row(one["name"], mark, one["detail"] or one["reason"])
    screen.print(backends)
    screen.print()
    checks = Table("check", "layer", "largest error", "", **narrow)
    for one in found["checks"]:
        mark = "[green]fine[/]" if one["fine"] else "[red]wrong[/]"
        checks.add_row(one["backend"], one["layer"], f"{one['error']:.1e}", one["trouble"] or mark)
    screen.print(checks)
    screen.print("Forward and backward in float32, beside torch.nn in float64.")
    screen.print("`bptt doctor --json` gives it all for a bug report; no path of yours is in it.")
