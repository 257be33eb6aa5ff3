"""URLs as names of files: taken apart, joined, and shown without the secrets that they may hold."""

import os
import posixpath
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote

from edsr.errors import ImageError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_SAME = {"s3a": "s3", "gcs": "gs"}
SCHEMES = ("s3", "gs", "https", "http", "memory")
"""Of URLs, besides file://, which stands for a path."""
_SAFE = "/%:@!$&'()*+,;=~[]?-._"


@dataclass(frozen=True, slots=True, order=True)
class Url:
    """An object's address, or that of a prefix, whose path ends in a slash or is empty.

    `str` gives it for people, without passwords and signatures; `address` is what a server is asked for.

    Attributes:
        scheme: one of SCHEMES.
        host: the bucket, or a server's name with its port, and with user:password@ where they were given.
        path: below it, without a slash at its start. In HTTP percent-encoded, elsewhere as it is.
        query: of HTTP, with its question mark.
    """

    scheme: str
    host: str
    path: str = ""
    query: str = ""

    @classmethod
    def parse(cls, text: str) -> "Url":
        """The URL that the text is.

        Raises:
            ImageError: Its scheme is not one of SCHEMES, or there is no bucket or server in it.
        """
        found = _URL.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is no URL")
        scheme = found[1].lower()
        scheme = _SAME.get(scheme, scheme)
        if scheme not in SCHEMES:
            known = ", ".join(f"{name}://" for name in (*SCHEMES[:-1], "file"))
            raise ImageError(f"{found[1]}://: an unknown scheme; use one of {known}", misuse=True)
        host, _, path = found[2].partition("/")
        query = ""
        if scheme in ("http", "https"):
            if "/" not in found[2]:
                host, mark, query = host.partition("?")
                query = mark + query
            path, _, _ = path.partition("#")
            path, mark, rest = path.partition("?")
            query = query or mark + rest
            path = quote(path, safe=_SAFE)
        if not host and scheme != "memory":
            what = "bucket" if scheme in ("s3", "gs") else "server"
            raise ImageError(f"{scheme}:///: names no {what}; write {scheme}://{what.upper()}/NAME", misuse=True)
        return cls(scheme, host, path, query)

    @property
    def address(self) -> str:
        """The whole URL, secrets included: not for messages."""
        return f"{self.scheme}://{self.host}/{self.path}{self.query}"

    def __str__(self) -> str:
        host = self.host.rpartition("@")[2]
        slash = "/" if self.path or self.host else ""
        return f"{self.scheme}://{host}{slash}{self.path}{'?...' if self.query else ''}"

    @property
    def writable(self) -> bool:
        """Whether files can be stored by this scheme."""
        return self.scheme not in ("http", "https")

    @property
    def is_folder(self) -> bool:
        """Whether it is a prefix by its name."""
        return not self.path or self.path.endswith("/")

    @property
    def name(self) -> str:
        """The last part of the path, as people write it. An encoded slash, which would lead elsewhere, is none."""
        last = self.path.rpartition("/")[2]
        return re.sub(r"[/\\\0]", "_", unquote(last)) if self.scheme in ("http", "https") else last

    @property
    def stem(self) -> str:
        """The name without its extension."""
        return self._split_name()[0]

    @property
    def suffix(self) -> str:
        """The extension of the name, with its dot, or ""."""
        return self._split_name()[1]

    def _split_name(self) -> tuple[str, str]:
        # As pathlib does, which would keep the parts of millions of names in memory for a while.
        stem, suffix = posixpath.splitext(self.name)
        return (stem, suffix) if suffix != "." else (self.name, "")

    @property
    def parent(self) -> "Url":
        """The prefix that it lies in."""
        head, slash, _ = self.path.removesuffix("/").rpartition("/")
        return replace(self, path=head + slash, query="")

    def with_name(self, name: str) -> "Url":
        """The URL with another name in the same prefix."""
        return self.parent / name

    def __truediv__(self, name: str) -> "Url":
        """The URL of a name in this prefix."""
        path = self.path if self.is_folder else f"{self.path}/"
        return replace(self, path=path + name, query="")


Place = Path | Url
"""Where a file is."""


def is_url(text: str) -> bool:
    """Whether the text is a URL, of whatever scheme but file://, and no path."""
    found = _URL.fullmatch(text)
    return found is not None and found[1].lower() != "file"


def as_path(text: str) -> str:
    """The path that a URL of file:// stands for; any other text as it is.

    Raises:
        ImageError: It is of another machine.
    """
    found = _URL.fullmatch(text)
    if found is None or found[1].lower() != "file":
        return text
    host, _, path = found[2].partition("/")
    if host not in ("", "localhost"):
        raise ImageError(f"{text}: names another machine; a path follows file:// after a third slash", misuse=True)
    path = unquote(path, errors="surrogateescape")
    return path if os.name == "nt" else f"/{path}"  # file:///C:/images


def why_not_a_path(name: str | os.PathLike[str]) -> str | None:
    """Why a name is not taken where only paths are: a line that says that it is a URL; None if it is none.

    As a path, s3://bucket/run would be a folder called `s3:` in this one.
    """
    found = _URL.fullmatch(os.fsdecode(name))
    if found is None:
        return None
    host, slash, path = found[2].partition("?")[0].partition("/")
    shown = f"{found[1]}://{host.rpartition('@')[2]}{slash}{path}"
    return f"{shown}: is a URL; only images to upscale, and their results, may be at one: give a path"


def place_of(text: str) -> Place:
    """The URL, or the path, that the text is.

    Raises:
        ImageError: As `Url.parse` and `as_path`.
    """
    return Url.parse(text) if is_url(text) else Path(as_path(text))


def identity(place: Place) -> str:
    """What two names of one file have in common: a path without links, or a whole address."""
    return place.address if isinstance(place, Url) else os.path.realpath(place)
