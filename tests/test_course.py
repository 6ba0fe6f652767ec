"""Does the course run?  The code of a page from top to bottom, its commands, its links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import typer

import own_cells
from bptt.tools.cli.app import app

COURSE = Path(__file__).resolve().parent.parent / "docs" / "course"
PAGES = sorted(COURSE.glob("[0-9]*.md"))


def commands(page):
    return re.findall(r"^    (bptt .*)$", page.read_text(encoding="utf-8"), re.MULTILINE)


def code_of(page):
    text = page.read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


def checked_command(line):
    """Raises where a command, an option or a value of it is not there."""
    command, arguments = typer.main.get_command(app), shlex.split(line, comments=True)[1:]
    while hasattr(command, "resolve_command"):  # down to the subcommand
        context = command.make_context("bptt", list(arguments), resilient_parsing=True)
        _, command, arguments = command.resolve_command(context, arguments)
    command.make_context("bptt", list(arguments))  # its options are known, their values good


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_runs(page):
    code = code_of(page)
    assert code.count("assert") >= 2
    torch.manual_seed(0)
    with own_cells.known_cells_as_before():
        exec(compile(code, page.name, "exec"), {"__name__": page.stem})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_ends_with_a_command_that_is_there(page):
    assert page.read_text(encoding="utf-8").rstrip().splitlines()[-1].startswith("    bptt ")
    for line in commands(page):
        checked_command(line)


@pytest.mark.parametrize("page", [*PAGES, COURSE / "README.md"], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_every_page_is_listed():
    listed = re.findall(r"\((\d-[\w-]+\.md)\)", (COURSE / "README.md").read_text(encoding="utf-8"))
    assert listed == [page.name for page in PAGES]
