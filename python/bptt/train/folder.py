"""A run's folder.

    options.yaml          the task's name and its options, readable
    checkpoint/           last.ckpt to go on from, best.ckpt
    weights.safetensors   the best epoch's weights, once training is through
    encoder.safetensors   those of `model.encoder` alone
    vocabularies.json     what turns text into numbers, of tasks that read text
    result.json           metrics, anchors, minutes, seed, machine, versions
    report.html           all of it to look at
    tensorboard/          curves for TensorBoard

Nothing in it is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import filelock
import torch
import yaml
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from bptt.data.errors import BadInput

from .files import write, write_text
from .settings import Settings

State = dict[str, Any]


class Run:
    """The folder of one run; making an instance touches nothing.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.options = path / "options.yaml"
        self.checkpoints = path / "checkpoint"
        self.last = self.checkpoints / "last.ckpt"
        self.best = self.checkpoints / "best.ckpt"
        self.weights = path / "weights.safetensors"
        self.encoder = path / "encoder.safetensors"
        self.vocabularies = path / "vocabularies.json"
        self.result = path / "result.json"
        self.report = path / "report.html"

    def finished(self) -> bool:
        """Whether training is through: its last file, the result, is there."""
        return self.result.is_file()

    def start(self, task: str, settings: Settings) -> None:
        """Makes the folder and saves the options, or checks that it is this very run's.

        Raises:
            BadInput: it holds another run, or something else.
        """
        if self.options.is_file():
            self._check_same(task, settings)
            return
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise BadInput(f"{self.path} exists and is no run: give another folder with --run")
        self.path.mkdir(parents=True, exist_ok=True)
        saved = {"task": task, **settings.model_dump(mode="json")}
        write_text(self.options, yaml.safe_dump(saved, sort_keys=False))

    def read_options(self) -> tuple[str, dict[str, Any]]:
        """The task's name and its options as they were saved.

        Raises:
            BadInput: this is no run's folder, or its options are not readable.
        """
        if not self.options.is_file():
            what = "holds no options.yaml" if self.path.is_dir() else "is no folder"
            raise BadInput(f"{self.path} is no run ({what}): `bptt train TASK --run` makes one")
        try:
            saved = yaml.safe_load(self.options.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise BadInput(
                f"{self.options} is not readable: {' '.join(str(error).split())}"
            ) from None
        if not isinstance(saved, dict) or not isinstance(saved.get("task"), str):
            raise BadInput(f"{self.options} names no task")
        return saved.pop("task"), saved

    def _check_same(self, task: str, settings: Settings) -> None:
        other, saved = self.read_options()
        advice = f"give another folder with --run, or remove {self.path}"
        if other != task:
            raise BadInput(f"{self.path} is a run of the task {other}, not {task}: {advice}")
        asked = settings.model_dump(mode="json")
        differ = [name for name in asked if asked[name] != saved.get(name)]
        if differ:
            changes = ", ".join(f"{name} {saved.get(name)}, not {asked[name]}" for name in differ)
            raise BadInput(f"{self.path} is a run with other options ({changes}): {advice}")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps another process from training here at the same time.

        Raises:
            BadInput: one does.
        """
        lock = filelock.FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise BadInput(f"another process is training in {self.path}: wait for it") from None
        try:
            yield
        finally:
            lock.release()

    def read_checkpoint(self, path: Path) -> State:
        """A checkpoint's content.

        Raises:
            BadInput: it is damaged.
        """
        try:
            loaded: State = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, ValueError, UnpicklingError, BadZipFile) as error:
            first = str(error).splitlines()[0]
            raise BadInput(
                f"{path} is damaged ({first}): remove {self.path} to start anew"
            ) from None
        return loaded

    def save_weights(self, model: nn.Module) -> None:
        """The model's weights, and those of its encoder alone."""
        write(self.weights, lambda beside: save_model(model, str(beside)))
        encoder = getattr(model, "encoder", None)
        if isinstance(encoder, nn.Module):
            write(self.encoder, lambda beside: save_model(encoder, str(beside)))

    def save_vocabularies(self, vocabularies: dict[str, Any]) -> None:
        """What turns text into numbers, if a task has that."""
        if vocabularies:
            write_text(self.vocabularies, json.dumps(vocabularies))

    def read_vocabularies(self) -> dict[str, Any]:
        """What `save_vocabularies` wrote.

        Raises:
            BadInput: it is not there, or not readable.
        """
        return read_result(self.vocabularies)

    def load_weights(self, model: nn.Module) -> None:
        """Puts the saved weights into a model.

        Raises:
            BadInput: there are none yet, they are damaged, or another model's.
        """
        load_weights(model, self.weights)


def load_weights(model: nn.Module, path: Path) -> None:
    """Puts weights of a .safetensors file into a model, or into an encoder alone.

    Raises:
        BadInput: the file is missing, damaged, or of another model.
    """
    if not path.is_file():
        raise BadInput(f"{path} is missing: the run is not finished; `bptt train` goes on with it")
    try:
        load_model(model, path)
    except SafetensorError as error:
        raise BadInput(f"{path} is damaged: {error}") from None
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise BadInput(f"{path} holds another model's weights: {' '.join(lines)}") from None


def read_settings(kind: type[Settings], saved: dict[str, Any], source: str) -> Settings:
    """Settings from what a file or a command line gave.

    Raises:
        BadInput: an option is unknown or out of range.
    """
    try:
        return kind(**saved)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, one['loc'])) or 'options'}: {one['msg']}, got {one['input']!r}"
            for one in error.errors()
        ]
        raise BadInput(f"{source}: {'; '.join(lines)}") from None


def read_result(path: Path) -> dict[str, Any]:
    """A result file's content.

    Raises:
        BadInput: it is not readable.
    """
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is not readable: {error}") from None
    return loaded
