"""Ours in the user's cache folder: what is found out or compiled once on a machine and kept."""

import os
import sys
import tempfile
from pathlib import Path


def folder() -> Path:
    """$XDG_CACHE_HOME/edsr-triton or where the system keeps caches; it need not exist."""
    usual = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or usual).expanduser() / "edsr-triton"


def write_whole(path: Path, content: bytes) -> bool:
    """Writes a file that at any moment is the old one or the new one; whether it could."""
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
