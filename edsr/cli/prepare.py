"""The command `prepare`: writes images as an HDF5 file of pairs, for `train --data` and `evaluate --hr`."""

import argparse
from argparse import Namespace

from .arguments import int_between
from .checks import check_named_files
from .console import print_result


def add_prepare(commands, parents) -> None:
    command = commands.add_parser(
        "prepare",
        parents=parents,
        usage="%(prog)s --data PATH... --out FILE.h5 [--scale 2|3|4] [options]",
        help="write folders of images as an HDF5 file, to train on or to score with",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Writes high-resolution images (hr) and their low-resolution images (lr), made as MATLAB does,\n"
        "into one file: patches for train --data, as in 91-image_x2.h5, or whole images for evaluate --hr,\n"
        "as in Set5_x2.h5. An image that does not suit is named, and the others go on.\n"
        "Exit code 0: the file is written, of the images that suit, 1: it is not, 2: wrong usage, 130: interrupted.",
        epilog="examples:\n"
        "  %(prog)s --data T91/ --out 91-image_x2.h5 --scale 2\n"
        "  %(prog)s --data Set5/HR --out Set5_x2.h5 --scale 2 --kind eval\n"
        "  %(prog)s --data T91/ --out srcnn_x3.h5 --scale 3 --upscaled --patch 33 --stride 14\n"
        "  %(prog)s --data DIV2K --out DIV2K_x4.h5 --scale 4 --color rgb --patch 192",
    )
    command.add_argument(
        "--data",
        required=True,
        nargs="+",
        action="extend",
        metavar="PATH",
        help="folders of high-resolution images, the folder of DIV2K, or HDF5 files",
    )
    command.add_argument("--out", required=True, metavar="FILE.h5", help="the file to write")
    command.add_argument(
        "--scale", type=int, default=2, choices=(2, 3, 4), help="how many times larger hr is than lr; default: 2"
    )
    command.add_argument(
        "--kind",
        default="train",
        choices=("train", "eval"),
        help="train, the default: patches, datasets lr and hr; eval: whole images, groups lr and hr of datasets 0, 1, "
        "and so on, in order of path",
    )
    command.add_argument(
        "--color",
        default="luma",
        choices=("luma", "rgb"),
        help="luma, the default: 16 to 235 as MATLAB's rgb2ycbcr has it, in floating point, gray images as they are; "
        "rgb: as the images have it",
    )
    command.add_argument(
        "--patch",
        type=int_between(1, 10**5),
        metavar="N",
        help="high-resolution pixels a side of a patch; default: 48",
    )
    command.add_argument(
        "--stride",
        type=int_between(1, 10**5),
        metavar="N",
        help="high-resolution pixels from one patch to the next; default: as --patch, so that none overlap",
    )
    command.add_argument(
        "--upscaled",
        action="store_true",
        help="lr upscaled by bicubic to the size of hr, as SRCNN and VDSR of other projects read it",
    )
    command.add_argument("--overwrite", action="store_true", help="replace an existing file")


def run_prepare(options: Namespace) -> int:
    check_named_files(options)

    from . import progress

    with progress.starting(options.quiet, "looking at the images"):
        from edsr.data import prepare_hdf5
    with progress.bars(options.quiet, [options.out]) as bars:
        written = prepare_hdf5(
            options.data,
            options.out,
            options.scale,
            options.kind,
            patch=options.patch,
            stride=options.stride,
            color=options.color,
            upscaled=options.upscaled,
            overwrite=options.overwrite,
            progress=bars,
        )
    if options.quiet:
        return 0
    images = f"{written.images:,} image{'s' * (written.images != 1)}"
    layout, how = written.layout, f"{options.out} --scale {options.scale}"
    if layout.patch is None:
        print_result(options.out, f"  {images} in {layout.color}; ready for evaluate --hr {how}")
    else:
        patches = f"{written.pairs:,} patches of {layout.patch} x {layout.patch} pixels in {layout.color}"
        ready = f"ready for train --data {how} --patch {layout.patch // layout.scale}"
        print_result(options.out, f"  {patches}, from {images}; {ready}")
    return 0
