"""The library's cells as structs for the CUDA kernels, which are compiled with the package.

    python -m bptt.custom.library_header | clang-format > csrc/cells/library.h

A kernel and the Python function find each other by a name with a digest of what the function
computes, so that one without the other is an unknown cell, never another one.
"""

from __future__ import annotations

import json

from .cpp import struct
from .library import CELLS_HERE, cell_named
from .partition import kept_values
from .user_cell import traced

_FILE = """\
// The cells of python/bptt/custom/library.py, by `python -m bptt.custom.library_header`.
#pragma once

#include "cell.h"
#include "choices.h"

namespace bptt {{

{structs}

}}  // namespace bptt
"""


def header() -> str:
    """The text of `csrc/cells/library.h`, before it is formatted."""
    structs = []
    for name, (function, gates, product) in CELLS_HERE.items():
        _, _, program = traced(name, function, len(gates), product)
        known_by = json.dumps(cell_named(name).name)
        line = f"static constexpr const char* kName = {known_by};"
        of_struct = name.title().replace("_", "")
        structs.append(struct(of_struct, program, *kept_values(program), product, [line]).rstrip())
    return _FILE.format(structs="\n\n".join(structs))


if __name__ == "__main__":
    print(header(), end="")
