"""Runs of `bptt train` in tests: made once for each task, and what must hold of all of them."""

from __future__ import annotations

import json
import re

from typer.testing import CliRunner

from bptt.tools.cli.app import app


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def train(task, run, *options):
    result = invoke("train", task, "--run", run, *options)
    assert result.exit_code == 0, result.output
    return json.loads((run / "result.json").read_text())


def refused(*arguments):
    """The one line of a refusal."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.output.strip().splitlines()
    assert len(lines) == 1, result.output
    return lines[0]


class Runs:
    """A finished run of each task, made when it is first asked for: its folder and its result."""

    def __init__(self, folder, options):
        self.folder, self.options, self.made = folder, options, {}

    def __call__(self, task):
        if task not in self.made:
            self.made[task] = train(task, self.folder / task, *self.options[task])
        return self.folder / task, self.made[task]


def check_report(run, result):
    page = (run / "report.html").read_text()
    # Curves, and what the model does: in pictures, or in words.
    assert page.count("data:image/png;base64,") + page.count("Written by") >= 2
    for text in (*result["metrics"], *result["options"], result["machine"]["name"]):
        assert text in page
    for anchor in result["anchors"]:
        assert anchor["source"] in page
    assert "http" not in re.sub(r'src="[^"]*"', "", page)  # one file: nothing is fetched


def check_judged_again(run, result):
    judged = invoke("eval", run)
    assert judged.exit_code == 0, judged.output
    for name, value in result["metrics"].items():
        assert f"{value:.5g}" in re.search(rf"{re.escape(name)}.*", judged.output)[0]
