"""Writing files so that a crash never leaves half of one."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a new binary file that takes the place of `path` when the block ends well.

    The bytes go to a temporary file in the same directory, are flushed to the disk, and only then
    renamed over `path`: readers see the old file or the new one, never a part of either. When the
    block raises, the temporary file is removed and `path` is as it was.

    Parameters
    ----------
    path : path-like
        Where the file shall be. A symbolic link is followed; an existing file keeps its mode.

    Raises
    ------
    OSError
        The directory does not exist or cannot be written to.
    ValueError
        `path` is there and is not a regular file (a directory, a device, a pipe).
    """
    target = os.path.realpath(os.fspath(path))
    mode = None
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(target).st_mode
    if mode is not None and not stat.S_ISREG(mode):
        raise ValueError(f"path {os.fspath(path)!r} is not a regular file, so it is not replaced")
    require_directory(path)
    directory, name = os.path.split(target)
    # A directory of its own would not do: a rename is atomic only inside one file system.
    temporary = os.path.join(directory, f".{name[:200]}.{secrets.token_hex(6)}.tmp")
    try:
        # "x" never follows or overwrites what somebody else put there.
        with open(temporary, "xb") as file:
            if mode is not None:
                os.chmod(temporary, stat.S_IMODE(mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_directory(directory)


def require_directory(path: str | os.PathLike[str]) -> None:
    """Refuse a file in a directory that is not there; worth asking before long work."""
    directory = os.path.dirname(os.path.realpath(os.fspath(path)))
    if not os.path.isdir(directory):
        raise FileNotFoundError(f"path {os.fspath(path)!r}: there is no directory {directory!r}")


def _sync_directory(directory: str) -> None:
    """Make the rename itself survive a power cut, where the system can."""
    with contextlib.suppress(OSError):  # Windows cannot open a directory
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
