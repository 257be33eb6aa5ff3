"""Training images: found, decoded once, cut into patches; and images in HDF5."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .dataset import load_dataset as load_dataset
    from .dataset import load_validation as load_validation
    from .dataset import train_val_split as train_val_split
    from .degradation import Degradation as Degradation
    from .degradation import degrade as degrade
    from .degradation import parse_degradation as parse_degradation
    from .hdf5 import Hdf5Images as Hdf5Images
    from .hdf5 import ImageSet as ImageSet
    from .hdf5 import is_hdf5 as is_hdf5
    from .patches import PatchLoader as PatchLoader
    from .prepare import prepare_hdf5 as prepare_hdf5
    from .store import IMAGE as IMAGE
    from .store import PairedImages as PairedImages

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "dataset": ["load_dataset", "load_validation", "train_val_split"],
        "degradation": ["Degradation", "degrade", "parse_degradation"],
        "hdf5": ["Hdf5Images", "ImageSet", "is_hdf5"],
        "patches": ["PatchLoader"],
        "prepare": ["prepare_hdf5"],
        "store": ["IMAGE", "PairedImages"],
    },
)
