"""From file to file: which images, where to, on which devices."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .jobs import Job as Job
    from .jobs import output_path as output_path
    from .jobs import plan_jobs as plan_jobs
    from .runner import Networks as Networks
    from .runner import Request as Request
    from .runner import enlarge_all as enlarge_all
    from .sizes import Size as Size
    from .stdio import STDIN as STDIN
    from .stdio import STDOUT as STDOUT
    from .stdio import received as received
    from .stdio import sent as sent

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "jobs": ["Job", "output_path", "plan_jobs"],
        "runner": ["Networks", "Request", "enlarge_all"],
        "sizes": ["Size"],
        "stdio": ["STDIN", "STDOUT", "received", "sent"],
    },
)
