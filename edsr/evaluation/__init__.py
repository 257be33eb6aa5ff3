"""How good a network is: scores, and comparisons to look at."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .comparison import compare as compare
    from .comparison import comparison_path as comparison_path
    from .comparison import default_title as default_title
    from .comparison import save_comparison as save_comparison
    from .figure import render_figure as render_figure
    from .metrics import psnr as psnr
    from .metrics import score as score
    from .metrics import scored_region as scored_region
    from .originals import list_originals as list_originals
    from .page import render_page as render_page
    from .results import ResultFolders as ResultFolders
    from .results import comparison_files as comparison_files
    from .results import encode_png as encode_png
    from .results import short_names as short_names
    from .scoring import FIELDS as FIELDS
    from .scoring import evaluate as evaluate
    from .scoring import evaluate_all as evaluate_all
    from .scoring import mean_counts as mean_counts
    from .scoring import mean_scores as mean_scores

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "comparison": ["compare", "comparison_path", "default_title", "save_comparison"],
        "figure": ["render_figure"],
        "metrics": ["psnr", "score", "scored_region"],
        "originals": ["list_originals"],
        "page": ["render_page"],
        "results": ["ResultFolders", "comparison_files", "encode_png", "short_names"],
        "scoring": ["FIELDS", "evaluate", "evaluate_all", "mean_counts", "mean_scores"],
    },
)
