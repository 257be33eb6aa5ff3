"""Network weights as files, packaged or from elsewhere."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .container import read_file as read_file
    from .exchange import PROJECTS as PROJECTS
    from .exchange import reading_options as reading_options
    from .exchange import save_checkpoint as save_checkpoint
    from .files import list_packaged as list_packaged
    from .files import load_model as load_model
    from .files import load_state as load_state
    from .files import load_with_info as load_with_info
    from .files import load_with_notes as load_with_notes
    from .files import read_info as read_info
    from .files import save_model as save_model
    from .files import source_files as source_files
    from .hub import HUB_MISSING as HUB_MISSING
    from .hub import as_repository as as_repository
    from .interpolation import parse_mixture as parse_mixture
    from .recognition import recognize as recognize
    from .selection import AUTO as AUTO
    from .selection import FAITHFUL as FAITHFUL
    from .selection import Choice as Choice
    from .selection import available_scales as available_scales
    from .selection import choose_by_file as choose_by_file
    from .selection import choose_by_strength as choose_by_strength
    from .terms import make_terms as make_terms
    from .terms import mix_terms as mix_terms

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "container": ["read_file"],
        "exchange": ["PROJECTS", "reading_options", "save_checkpoint"],
        "files": [
            "list_packaged",
            "load_model",
            "load_state",
            "load_with_info",
            "load_with_notes",
            "read_info",
            "save_model",
            "source_files",
        ],
        "hub": ["HUB_MISSING", "as_repository"],
        "interpolation": ["parse_mixture"],
        "recognition": ["recognize"],
        "terms": ["make_terms", "mix_terms"],
        "selection": ["AUTO", "Choice", "FAITHFUL", "available_scales", "choose_by_file", "choose_by_strength"],
    },
)
