"""Training runs: what they are, how they go, and how they go on after a stop."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .config import TrainConfig as TrainConfig
    from .lock import RunLock as RunLock
    from .preview import write_preview as write_preview
    from .progress import Progress as Progress
    from .rehearsal import dry_run as dry_run
    from .rehearsal import find_learning_rate as find_learning_rate
    from .run_log import read_metrics as read_metrics
    from .trainer import train as train
    from .validation import is_flat as is_flat

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["TrainConfig"],
        "lock": ["RunLock"],
        "preview": ["write_preview"],
        "progress": ["Progress"],
        "rehearsal": ["dry_run", "find_learning_rate"],
        "run_log": ["read_metrics"],
        "trainer": ["train"],
        "validation": ["is_flat"],
    },
)
