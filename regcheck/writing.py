"""Files are written whole or not at all: beside the old one first, then in its place."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path

from regcheck.errors import UsageError


def checked(option: str, name: str, suffixes: Collection[str]) -> Path:
    """Return the path that an option names, if its suffix is one of these and its folder exists.

    Raises:
        UsageError: it is not.
    """
    path = Path(name)
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{option} {name}: no format has this suffix; take {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {name}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"{option} {name}: this is a folder")
    return path


def check_distinct(named: Iterable[tuple[str, str]]) -> None:
    """Check that no two options, each with a file's name, would write one file.

    Raises:
        UsageError: two would.
    """
    known: dict[Path, str] = {}
    for option, name in named:
        written = f"{option} {name}"
        other = known.setdefault(Path(name).resolve(), written)
        if other is not written:
            raise UsageError(f"{written}: `{other}` writes this file already; name another")


def write_whole(path: Path, chunks: Iterable[str | bytes]) -> None:
    """Write a file, text in UTF-8; until it is whole, what stood there before stays.

    Raises:
        UsageError: it cannot be written.
    """
    target = path.resolve()  # a link stays one
    part = None
    try:
        descriptor, part = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=".part", dir=target.parent
        )
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(map(in_bytes, chunks))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, mode_of(target))  # noqa: PTH101  # that of mkstemp is for the owner alone
        os.replace(part, target)  # noqa: PTH105
        part = None
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if part is not None:
            Path(part).unlink(missing_ok=True)


def in_bytes(chunk: str | bytes) -> bytes:
    """Return text in UTF-8, with escapes for what that has no place for."""
    return chunk if isinstance(chunk, bytes) else chunk.encode("utf-8", "backslashreplace")


def mode_of(path: Path) -> int:
    """Return the permissions of a file, or those that a new one has."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
