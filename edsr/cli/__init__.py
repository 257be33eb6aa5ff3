"""The command line: the only place that prints."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .app import main as main
    from .parser import build_parser as build_parser

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "app": ["main"],
        "parser": ["build_parser"],
    },
)
