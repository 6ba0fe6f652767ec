"""The options that every task has; a task adds its own in a subclass."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from bptt.custom.files import is_named, load_cell

LARGE = 20_000  # examples from which on batches are large
LARGE_BATCH, SMALL_BATCH = 256, 32
MOST_EPOCHS, LEAST_PATIENCE = 100, 5


CELL_HELP = "Of the recurrent layers: rnn, gru, lstm, or your own, as file.py:name."


def known_cell(name: str) -> str:
    """The name of a cell that a task can take, which is read if it is one in a file.

    Raises:
        ValueError: it is none.
    """
    if is_named(name):
        load_cell(name)
    elif name not in ("rnn", "gru", "lstm"):
        raise ValueError("must be rnn, gru, lstm, or one of your own as file.py:name")
    return name


CellName = Annotated[str, AfterValidator(known_cell)]


class Settings(BaseModel):
    """Options of a run, saved beside it as `options.yaml`.

    Every field is an option of `bptt train TASK`; its description is the help.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: Path | None = Field(None, description="Data to train on, instead of what packages ship.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of weights, order, noise and samples.")
    epochs: int = Field(0, ge=0, description="Passes over the data, at most (0: by its size).")
    patience: int = Field(
        0, ge=0, description="Stop after so many epochs without a better one (0: a fifth of all)."
    )
    batch: int = Field(
        0, ge=0, description="Examples in a batch, on each device (0: by the size of the data)."
    )
    lr: float = Field(1e-3, gt=0, description="Highest learning rate: it rises to it, then falls.")
    clip: float = Field(0.0, ge=0, description="Bound on the norm of all gradients (0: none).")
    average: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay of a mean of weights over updates, then judged (0: none).",
    )
    examples: int = Field(0, ge=0, description="Train on so many examples (0: all).")
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = Field(
        "32-true", description="Of weights and arithmetic, by Lightning's names."
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto", description="What to train on.")
    devices: int = Field(1, ge=1, description="Processes: one a GPU, or several on a CPU.")
    compile: bool = Field(False, description="Compile the model by torch.compile.")

    @model_validator(mode="after")
    def _own_cells_are_bptts(self: Self) -> Self:
        if getattr(self, "impl", "") == "torch" and is_named(str(getattr(self, "cell", ""))):
            raise ValueError("impl must be bptt for a cell of your own")
        return self

    def fitted_to(self: Self, examples: int, steps: int) -> Self:
        """What is left to the size of the data, filled in: about `steps` steps of the optimizer."""
        examples = min(examples, self.examples or examples)
        batch = self.batch or (LARGE_BATCH if examples >= LARGE else SMALL_BATCH)
        epochs = self.epochs or min(MOST_EPOCHS, math.ceil(steps * batch / examples))
        patience = self.patience or max(LEAST_PATIENCE, epochs // 5)
        return self.model_copy(update={"batch": batch, "epochs": epochs, "patience": patience})


class RecurrentSettings(Settings):
    """Options of tasks whose model is a stack of recurrent layers."""

    cell: CellName = Field("gru", description=CELL_HELP)
    impl: Literal["bptt", "torch"] = Field("bptt", description="Whose recurrent layers.")
    layers: int = Field(1, ge=1, description="Recurrent layers on top of each other.")
    units: int = Field(128, ge=1, description="Hidden state of a layer, of each direction.")
    lr: float = Field(4e-3, gt=0, description="Highest learning rate: it rises to it, then falls.")
    clip: float = Field(1.0, ge=0, description="Bound on the norm of all gradients (0: none).")
