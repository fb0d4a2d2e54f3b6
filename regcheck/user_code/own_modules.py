"""The modules that a user's code imports from its own folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

from regcheck.user_code.tracebacks import is_library


class Modules:
    """The modules that code imports from its own folder, there only while the code runs.

    Modules of the same names that were loaded from elsewhere make room meanwhile, but for the
    libraries': those rely on each other.

    Args:
        folder: the code's folder; what else it puts on sys.path counts likewise.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.known = set(sys.path)
        self.theirs: dict[str, ModuleType] = {}
        self.hidden: dict[str, ModuleType] = {}
        own = provided(folder)
        self.others = [name for name in sys.modules if self.gives_way(name, own)]
        self.last: str | None = None

    def gives_way(self, name: str, own: set[str]) -> bool:
        """Say whether a loaded module stands where one of the folder's would."""
        top = name.partition(".")[0]
        if top not in own or top in {"__main__", "regcheck"}:
            return False
        home = home_of(sys.modules[top]) if top in sys.modules else None
        return home is not None and home != self.folder and not is_library(home)

    def swap_in(self) -> None:
        """Put the code's modules into sys.modules."""
        self.hidden = {name: sys.modules.pop(name) for name in self.others if name in sys.modules}
        sys.modules.update(self.theirs)
        self.last = next(reversed(sys.modules))

    def swap_out(self, path: set[str]) -> None:
        """Take them out, with those that the code has imported meanwhile."""
        folders = {str(Path(folder).absolute()) for folder in path - self.known} | {self.folder}
        for name in self.new_names():
            top = sys.modules.get(name.partition(".")[0])
            if top is not None and home_of(top) in folders:
                self.theirs[name] = sys.modules[name]
        for name in self.theirs:
            sys.modules.pop(name, None)
        sys.modules.update(self.hidden)

    def new_names(self) -> list[str]:
        """List what was put into sys.modules since `swap_in`; it keeps the order."""
        names = []
        for name in reversed(sys.modules):
            if name == self.last:
                break
            names.append(name)
        return names


def provided(folder: str) -> set[str]:
    """Name the modules and packages that can be imported from a folder."""
    names = set()
    for entry in os.scandir(folder):
        name, dot, kind = entry.name.partition(".")
        package = not dot and (Path(entry.path) / "__init__.py").is_file()
        if package or kind == "py" or kind.endswith(("so", "pyd")):
            names.add(name)
    return names


def home_of(module: ModuleType) -> str | None:
    """Give the folder that a top-level module was imported from."""
    paths = getattr(module, "__path__", None)
    place = next(iter(paths), None) if paths else getattr(module, "__file__", None)
    return str(Path(place).absolute().parent) if isinstance(place, str) else None
