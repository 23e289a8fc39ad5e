"""The checkout as if it were installed: enet_deploy.export is the folder export/ beside enet_deploy/, and so on.

Every Python runs a module of this name when it starts. conftest.py runs it too, and has the Pythons that tests start
find it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
NAMES = {"enet_deploy", "enet_deploy.benchmarks", "enet_deploy.calibration", "enet_deploy.export"}


class Checkout(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(fullname, [str(ROOT)]) if fullname in NAMES else None


sys.meta_path.insert(0, Checkout())
