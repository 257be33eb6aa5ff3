"""From file to file: which images, where each goes, how large it becomes, on which devices."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .clashes import Job as Job
    from .forecast import Forecast as Forecast
    from .inputs import FailedInput as FailedInput
    from .inputs import FoundInputs as FoundInputs
    from .inputs import find_inputs as find_inputs
    from .jobs import BatchPlan as BatchPlan
    from .jobs import OutputSize as OutputSize
    from .jobs import is_folder_name as is_folder_name
    from .jobs import output_path as output_path
    from .jobs import plan_jobs as plan_jobs
    from .listing import LazyJobs as LazyJobs
    from .listing import can_be_lazy as can_be_lazy
    from .listing import settle_name as settle_name
    from .pool import UpscalerPool as UpscalerPool
    from .pool import usual_scale as usual_scale
    from .prefixes import ListedJobs as ListedJobs
    from .runner import FileResult as FileResult
    from .runner import UpscaleOptions as UpscaleOptions
    from .runner import run_job as run_job
    from .runner import upscale_files as upscale_files
    from .stdio import STDIN as STDIN
    from .stdio import STDOUT as STDOUT
    from .stdio import stdin_file as stdin_file
    from .stdio import stdout_file as stdout_file

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "clashes": ["Job"],
        "forecast": ["Forecast"],
        "inputs": ["FailedInput", "FoundInputs", "find_inputs"],
        "jobs": ["BatchPlan", "OutputSize", "is_folder_name", "output_path", "plan_jobs"],
        "listing": ["LazyJobs", "can_be_lazy", "settle_name"],
        "pool": ["UpscalerPool", "usual_scale"],
        "prefixes": ["ListedJobs"],
        "runner": ["FileResult", "UpscaleOptions", "run_job", "upscale_files"],
        "stdio": ["STDIN", "STDOUT", "stdin_file", "stdout_file"],
    },
)
