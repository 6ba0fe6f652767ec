"""What is wrong with something the user gave, in a line that says what to do."""

from __future__ import annotations


class BadInput(ValueError):
    """A file, folder or option that cannot be used.

    The message names it, says what was expected and what came. Commands print it and exit with 2.
    """
