"""What a distribution cannot know before it is built: where its repository is.

The README's images and links are relative, for readers of the repository. On a package's page they would lead
nowhere, so a distribution built from a clone gets the address of the clone's origin. pyproject.toml has the rest.
"""

import os
import re
import subprocess
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent


def repository() -> str | None:
    """https://HOST/OWNER/NAME from $EDSR_REPOSITORY or git's origin; None where it is not on the web."""
    address = os.environ.get("EDSR_REPOSITORY", "")
    if not address:
        try:
            command = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
            address = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None
    address = re.sub(r"^(?:ssh://)?git@([^:/]+)[:/]", r"https://\1/", address).removesuffix(".git").rstrip("/")
    return address if re.fullmatch(r"https://[\w.-]+/[\w./-]+", address) else None


def readme(home: str | None) -> str:
    """The README, its relative images and links made absolute."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    if home is None:
        return text
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?:|#)", rf"\g<1>{home}/raw/main/", text)
    return re.sub(r"(?<!!)(\[[^\]]*\]\()(?!https?:|#)", rf"\g<1>{home}/blob/main/", text)


home = repository()
pages = {"Source": "", "Documents": "/tree/main/docs", "Issues": "/issues", "Changes": "/blob/main/CHANGELOG.md"}
setup(
    long_description=readme(home),
    long_description_content_type="text/markdown",
    project_urls={name: home + page for name, page in pages.items()} if home else {},
)
