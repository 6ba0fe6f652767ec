"""The tasks of `bptt train`, one file each. They are imported when they are asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bptt.train.task import Task

_CLASSES = {
    "autoencoder": "autoencoder.AutoencoderTask",
    "denoise": "denoise.DenoiseTask",
    "sparse": "sparse.SparseTask",
    "vae": "vae.VaeTask",
    "fill": "fill.FillTask",
    "rows": "rows.RowsTask",
    "series": "series.SeriesTask",
    "faces": "faces.FacesTask",
    "g2p": "g2p.G2pTask",
    "inflect": "inflect.InflectTask",
    "translate": "translate.TranslateTask",
    "lm": "lm.LmTask",
    "classify-series": "classify.ClassifySeriesTask",
    "classify-images": "classify.ClassifyImagesTask",
    "classify-texts": "classify.ClassifyTextsTask",
    "music": "music.MusicTask",
    "name": "name.NameTask",
    "tag": "tag.TagTask",
    "masked": "masked.MaskedTask",
    "digits": "digits.DigitsTask",
    "forecast": "forecast.ForecastTask",
    "detect": "detect.DetectTask",
}

NAMES = tuple(_CLASSES)


def task_class(name: str) -> type[Task]:
    """The class of a task of `NAMES`."""
    module, _, kind = _CLASSES[name].partition(".")
    found: type[Task] = getattr(import_module(f"{__name__}.{module}"), kind)
    return found
