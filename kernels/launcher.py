"""Triton's launcher, as far as this package knows its insides: the only place that does.

Triton has no public way to launch again what it launched before without looking for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import triton

# Between these (major, minor) versions the short way below was tried.
TRIED = ((3, 6), (3, 8))


def relauncher(compiled: Any, grid: tuple[int, ...]) -> Callable[..., None] | None:
    """A function of a kernel's arguments that launches what was just launched, on that stream.

    Addresses may stand for tensors.

    Args:
        compiled: what the first launch returned.
        grid: the programs.

    Returns:
        None where a launch has to go through Triton's search: in the interpreter, and with a Triton
        that nobody tried; then a warning says so, once.
    """
    if compiled is None or not _is_tried():
        return None
    driver = triton.runtime.driver.active
    stream = driver.get_current_stream(driver.get_current_device())
    return partial(compiled[grid], stream=stream)


@cache
def _is_tried() -> bool:
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    tried = TRIED[0] <= version <= TRIED[1]
    if not tried:
        first, last = (".".join(map(str, end)) for end in TRIED)
        warnings.warn(
            f"bptt: Triton {triton.__version__} is none of those that were tried ({first} to "
            f"{last}): each step of the step tier is launched the slow way",
            stacklevel=2,
        )
    return tried
