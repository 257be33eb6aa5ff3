"""This project's folder in the user's cache: what is measured or compiled once on a machine and kept."""

import os
import tempfile
from pathlib import Path

import platformdirs


def folder() -> Path:
    """$XDG_CACHE_HOME/edsr-triton, on every system, or where the system keeps caches. It need not exist."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).expanduser() / "edsr-triton"
    return platformdirs.user_cache_path("edsr-triton", appauthor=False)


def write_whole(path: Path, content: bytes) -> bool:
    """Writes a file that at any moment is the old one or the new one. Makes its folder.

    Returns:
        Whether it could be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
        part = Path(name)
        try:
            with open(handle, "wb") as file:
                file.write(content)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError:
        return False
    return True
