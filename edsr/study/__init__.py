"""The family in one table: every network trained alike, scored alike, and EDSR's claims measured."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .report import check_report as check_report
    from .report import write_report as write_report
    from .runner import Study as Study
    from .runner import StudyConfig as StudyConfig
    from .runner import run_study as run_study

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"report": ["check_report", "write_report"], "runner": ["Study", "StudyConfig", "run_study"]},
)
