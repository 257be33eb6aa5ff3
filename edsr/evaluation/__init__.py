"""How good a network is: scores, and comparisons to look at."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .comparison import compare as compare
    from .comparison import outcome as outcome
    from .comparison import save as save
    from .figure import draw as draw
    from .metrics import psnr as psnr
    from .metrics import scored as scored
    from .page import render_page as render_page
    from .scoring import FIELDS as FIELDS
    from .scoring import evaluate as evaluate
    from .scoring import mean as mean

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "comparison": ["compare", "outcome", "save"],
        "figure": ["draw"],
        "metrics": ["psnr", "scored"],
        "page": ["render_page"],
        "scoring": ["FIELDS", "evaluate", "mean"],
    },
)
