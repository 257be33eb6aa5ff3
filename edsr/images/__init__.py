"""Image files read and written as rows of pixels, in bounded memory; whatever is lost is reported.

Pixels are numpy arrays [rows, width, channels] of uint8, uint16 or float32 (1.0 is white), channels 1 (gray), 2 (gray
and alpha), 3 (RGB) or 4 (RGB and alpha, not premultiplied), top row first and upright: an orientation is applied
once, whoever states it, and not passed on. All else that a file holds besides pixels is kept, converted or named
(`edsr.images.metadata`). Formats: PNG, JPEG, WebP, TIFF (BigTIFF above 4 GB), AVIF, and HEIF where libvips has its
decoder; palettes and 1, 2 or 4 bits a sample come out as 8-bit, CMYK as sRGB. Animations and files of several pages are
refused, and so are colors that would be misread (Lab, uncompressed YCbCr, HDR).

libvips decodes and encodes row by row; `buffered_bytes` of `ImageReader` and `ImageWriter` says what is held as a whole
instead. Its cache of operations is switched off when it is first used here.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .compression import LossyCompression as LossyCompression
    from .compression import detect_compression as detect_compression
    from .filling import fill_rows as fill_rows
    from .folders import find_images as find_images
    from .folders import folders_with_images as folders_with_images
    from .folders import name_folders as name_folders
    from .folders import no_images as no_images
    from .folders import passed_over as passed_over
    from .folders import passed_over_kinds as passed_over_kinds
    from .folders import scan_folder as scan_folder
    from .folders import scan_images as scan_images
    from .folders import unlistable as unlistable
    from .folders import walk_folders as walk_folders
    from .formats import FORMATS as FORMATS
    from .formats import READABLE as READABLE
    from .formats import check_memory as check_memory
    from .formats import pixels_to_srgb as pixels_to_srgb
    from .keeping import kept_extension as kept_extension
    from .nodata import Holes as Holes
    from .opaque import read_opaque as read_opaque
    from .probe import EXTENSIONS as EXTENSIONS
    from .probe import identify as identify
    from .reader import ImageReader as ImageReader
    from .reader import ReadLimits as ReadLimits
    from .reader import read_image as read_image
    from .resize import matlab_bicubic as matlab_bicubic
    from .resize import matlab_downscale as matlab_downscale
    from .resize import matlab_round as matlab_round
    from .samples import TargetSize as TargetSize
    from .samples import over_white as over_white
    from .samples import to_depth as to_depth
    from .samples import to_float as to_float
    from .value_range import HIGHEST as HIGHEST
    from .value_range import LOWEST as LOWEST
    from .value_range import UNIT as UNIT
    from .value_range import ValueRange as ValueRange
    from .wholeness import ends_whole as ends_whole
    from .writer import ImageWriter as ImageWriter

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "compression": ["LossyCompression", "detect_compression"],
        "filling": ["fill_rows"],
        "folders": [
            "find_images",
            "folders_with_images",
            "name_folders",
            "no_images",
            "passed_over",
            "passed_over_kinds",
            "scan_folder",
            "scan_images",
            "unlistable",
            "walk_folders",
        ],
        "formats": ["FORMATS", "READABLE", "check_memory", "pixels_to_srgb"],
        "opaque": ["read_opaque"],
        "nodata": ["Holes"],
        "keeping": ["kept_extension"],
        "probe": ["EXTENSIONS", "identify"],
        "reader": ["ImageReader", "ReadLimits", "read_image"],
        "resize": ["matlab_bicubic", "matlab_downscale", "matlab_round"],
        "samples": ["TargetSize", "over_white", "to_depth", "to_float"],
        "value_range": ["HIGHEST", "LOWEST", "UNIT", "ValueRange"],
        "wholeness": ["ends_whole"],
        "writer": ["ImageWriter"],
    },
)
