"""Does the guide run?  The code of a page from top to bottom, its commands, the places of pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

import bptt
import own_cells
from test_course import checked_command, code_of, commands

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs" / "guide").glob("*.md"))
TEXT = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_runs(page):
    code = code_of(page)
    assert code.count("assert") >= 2
    torch.manual_seed(0)
    with own_cells.known_cells_as_before():
        exec(compile(code, page.name, "exec"), {"__name__": page.stem})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_there(page):
    for line in commands(page):
        checked_command(line)


def test_every_page_has_its_place():
    listed = set(re.findall(r"[\w/-]+\.md", TEXT))
    there = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert listed == there
    assert yaml.safe_load(TEXT)["docs_dir"] == "docs"


def test_every_public_name_is_in_the_reference():
    reference = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs" / "api").glob("*.md"))
    for name in set(bptt.__all__) - {"__version__"}:
        assert re.search(rf"^::: bptt\.(convert\.)?{name}$", reference, re.MULTILINE), name
