"""How commands end where the user's input is at fault."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from bptt.data.errors import BadInput


@contextmanager
def refusing(command: str) -> Iterator[None]:
    """Turns into one line and exit status 2: bad input, files that cannot be read or written,
    packages that are not installed."""
    try:
        yield
    except BadInput as error:
        message = str(error)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        message = f"{name}{error.strerror or error}"
        if error.errno == errno.ENOSPC:
            message += "; free some space and run the same command again: it goes on from there"
    except ModuleNotFoundError as missing:
        message = f"needs the package {missing.name}: pip install 'bptt[models]'"
    else:
        return
    typer.secho(f"bptt {command}: {message}", err=True, fg="red")
    raise typer.Exit(2)
