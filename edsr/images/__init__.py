"""Image files <-> rows of pixels, in bounded memory, nothing lost without a word.

Pixels are numpy arrays [rows, width, channels] of uint8, uint16 or float32 (1.0 is white), channels 1 (gray), 2 (gray
and alpha), 3 (RGB) or 4 (RGB and alpha, not premultiplied), top row first and already upright: an EXIF orientation is
applied once and not passed on, while the rest of EXIF goes from every format to every other. Formats: PNG, JPEG, WebP,
TIFF (BigTIFF above 4 GB), AVIF, and HEIF where libvips has its decoder; palettes and 1, 2 or 4 bits a sample come out
as 8-bit, CMYK as sRGB. Animations and files of several pages are refused, and so are colors that would be misread
(Lab, uncompressed YCbCr, HDR). Second images inside a JPEG (previews, gain maps) are left out, and so are EXIF's
thumbnails.

libvips decodes and encodes row by row; what is held whole instead is told by `Reader.held` and by `Writer`.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .compression import Lossy as Lossy
    from .compression import lossy as lossy
    from .formats import FORMATS as FORMATS
    from .formats import READABLE as READABLE
    from .formats import Fit as Fit
    from .formats import find_images as find_images
    from .formats import fitting as fitting
    from .formats import to_srgb as to_srgb
    from .probe import EXTENSIONS as EXTENSIONS
    from .probe import identify as identify
    from .reader import Reader as Reader
    from .reader import read as read
    from .resize import bicubic as bicubic
    from .resize import downscale as downscale
    from .samples import Reduced as Reduced
    from .writer import Writer as Writer

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "compression": ["Lossy", "lossy"],
        "formats": ["FORMATS", "Fit", "READABLE", "find_images", "fitting", "to_srgb"],
        "probe": ["EXTENSIONS", "identify"],
        "reader": ["Reader", "read"],
        "resize": ["bicubic", "downscale"],
        "samples": ["Reduced"],
        "writer": ["Writer"],
    },
)
