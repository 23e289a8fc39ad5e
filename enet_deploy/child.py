"""Child processes that run our own code."""

from __future__ import annotations

import sys


def python(code: str, *arguments: str) -> list[str]:
    """Return the command that runs `code` in a new Python, with `arguments` in sys.argv[1:].

    The child looks for modules where this process does, without the current folder: `python -m` and `python -c` put it
    first, so that a cv2.py or pickle.py in it would be run. PYTHONSAFEPATH would do that from Python 3.11 on.
    """
    places = [place for place in sys.path if place]
    return [sys.executable, "-c", f"import sys; sys.path[:] = {places!r}; {code}", *arguments]


def python_main(module: str, *arguments: str) -> list[str]:
    """Return the command that runs `main()` of a module and exits with its result; see `python`."""
    return python(f"from {module} import main; sys.exit(main())", *arguments)
