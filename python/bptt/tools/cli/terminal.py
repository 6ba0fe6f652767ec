"""Where tables are printed."""

from __future__ import annotations

from rich.console import Console


def console() -> Console:
    """The terminal; as wide as tables need where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=max(112, console.width))
