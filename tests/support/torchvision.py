"""spandrel where torchvision cannot be imported: it needs three names of it, for networks that no test runs.

Beside a CPU build of torch, torchvision's wheel from PyPI fails with "operator torchvision::nms does not exist". The
matching build is taken where there is one.
"""

import contextlib
import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest


def import_spandrel() -> ModuleType:
    """spandrel, with a stand-in for torchvision while it is imported, if need be; skips where it is not installed."""
    if "spandrel" in sys.modules:
        return sys.modules["spandrel"]
    if importlib.util.find_spec("spandrel") is None:  # pyright: ignore[reportAttributeAccessIssue]
        pytest.skip("needs spandrel", allow_module_level=True)
    with contextlib.suppress(ImportError, RuntimeError):
        importlib.import_module("torchvision")
        return importlib.import_module("spandrel")
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    modules = {name: ModuleType(name) for name in names}
    for name, module in modules.items():
        module.__spec__ = ModuleSpec(name, None)
    modules[names[2]].__dict__.update(InterpolationMode=type("InterpolationMode", (), {}), rotate=None, normalize=None)
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        return importlib.import_module("spandrel")
