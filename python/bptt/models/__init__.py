"""Reference models on the fused layers: one model, one readable file."""

from .scores import Scores, score
from .seq2seq import Seq2Seq

__all__ = ["Scores", "Seq2Seq", "score"]
