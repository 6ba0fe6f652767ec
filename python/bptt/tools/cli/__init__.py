"""The command `bptt`. Its parts load what they need when they run, so that `--help` is quick.

    bptt bench      speed beside torch.nn
    bptt check      accuracy beside torch.nn
    bptt doctor     what is installed, what can run, and whether it is right: for a bug report
    bptt gradflow   gradients through time, vanishing and exploding
    bptt tasks      the reference models; `bptt train`, `eval`, `reconstruct`, `sample`,
                    `complete`, `translate`, `pronounce` run them

Needs the packages of the extra `bench`, for the reference models those of `models`:
`pip install bptt[bench,models]`.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point: says what to install where a package is missing."""
    try:
        from .app import app
    except ModuleNotFoundError as missing:
        if missing.name not in ("typer", "rich", "click"):
            raise
        sys.exit(f"bptt: the command needs the package {missing.name}: pip install 'bptt[bench]'")
    app()
