"""What lies under a prefix, listed while it is used: of ten million names a thousand are held at a time."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from .transfer import file_system, key_of, repeated
from .url import Url

PAGE = 1_000
"""Names that S3 is asked for at a time, the most that it gives."""
_MAGIC = re.compile(r"[*?\[]")


class Listing(NamedTuple):
    """Which objects are meant: those in a prefix, or of these the ones that match a pattern.

    Attributes:
        folder: the prefix.
        pattern: of the whole path, as `glob` has it, in which `**` stands for prefixes at any depth; "" for all.
    """

    folder: Url
    pattern: str = ""

    def __str__(self) -> str:
        return str(replace(self.folder, path=self.pattern) if self.pattern else self.folder)


def listing_of(url: Url, is_object: bool = False) -> Listing | None:
    """The listing that a URL stands for, as a prefix or as a pattern; None if it is the name of an object.

    A prefix ends in a slash, or is one because nothing has its name, but names begin with it. Over HTTP there is none.

    Args:
        is_object: whether the URL, by its ending, can be taken for an object's without a look.

    Raises:
        ImageError: It cannot be found out.
    """
    if url.scheme in ("http", "https"):
        return None
    if url.is_folder:
        return Listing(url)
    magic = _MAGIC.search(url.path)
    if is_object and not magic:
        return None
    files = file_system(url)

    def look() -> str:
        try:
            return files.info(key_of(url))["type"]
        except (FileNotFoundError, ValueError):  # or what a name cannot be
            return ""

    kind = repeated(look, url)
    if kind == "directory":
        return Listing(replace(url, path=f"{url.path}/"))
    if kind or not magic:
        return None
    return Listing(replace(url, path=url.path[: url.path.rfind("/", 0, magic.start()) + 1]), url.path)


def list_objects(listing: Listing, recursive: bool = False) -> Iterator[Url]:
    """The objects that are meant, and the prefixes in the prefix, if they are not entered: these end in a slash.

    Args:
        recursive: whether they are; a pattern says so itself.

    Raises:
        ImageError: They cannot be listed, or no further.
    """
    folder, pattern = listing
    beginning = folder.path
    if pattern:
        rest = pattern[len(folder.path) :]
        recursive = "/" in rest or "**" in rest
        beginning += _MAGIC.split(rest)[0]
    pages = _pages_of_s3 if folder.scheme == "s3" else _pages
    matches = _compiled(pattern)
    for page in pages(folder, beginning, recursive):
        for path in page:
            if path.startswith(beginning) and path != folder.path and (path.endswith("/") or matches(path)):
                if path.endswith("/") and (recursive or pattern):  # a mark that there is a folder
                    continue
                yield replace(folder, path=path)


def _compiled(pattern: str) -> Any:
    """Whether a path matches."""
    if not pattern:
        return lambda path: True
    from fsspec.utils import glob_translate

    return re.compile(glob_translate(pattern)).match


def _pages_of_s3(folder: Url, beginning: str, recursive: bool) -> Iterator[list[str]]:
    """By a thousand; fsspec has no listing that is not whole."""
    files, more = file_system(folder), {}
    arguments = {"Bucket": folder.host, "Prefix": beginning, "MaxKeys": PAGE}
    arguments |= {} if recursive else {"Delimiter": "/"}
    while True:
        page = repeated(lambda: files.call_s3("list_objects_v2", **arguments, **more), folder)  # noqa: B023
        yield [one["Key"] for one in page.get("Contents", ())] + [
            one["Prefix"] for one in page.get("CommonPrefixes", ())
        ]
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def _pages(folder: Url, beginning: str, recursive: bool) -> Iterator[list[str]]:
    """By folders."""
    files, waiting = file_system(folder), [folder]
    while waiting:
        here = waiting.pop()

        def look() -> list[dict[str, Any]]:
            try:
                return files.ls(key_of(here).rstrip("/"), detail=True)  # noqa: B023
            except FileNotFoundError:
                if here != folder or here.path:  # noqa: B023
                    return []
                raise

        page, inner = [], []
        for entry in sorted(repeated(look, folder), key=lambda entry: entry["name"]):
            path = entry["name"].lstrip("/").partition("/")[2]
            if entry["type"] == "directory":
                inner.append(f"{path.rstrip('/')}/")
            elif path:
                page.append(path)
        yield page + ([] if recursive else inner)
        if recursive:
            waiting += [replace(folder, path=path) for path in reversed(inner)]
