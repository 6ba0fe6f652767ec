"""Data sets of the reference models, and what turns them into padded batches.

Loaders take a path and need nothing but the standard library and torch; without a path they read
what an installed package ships.
"""

from .batches import Padded, pad, similar_lengths
from .vocabulary import Vocabulary

__all__ = ["Padded", "Vocabulary", "pad", "similar_lengths"]
