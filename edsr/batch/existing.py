"""Whether what is there under an output's name is a finished result."""

import os
from pathlib import Path

from edsr.errors import ImageError
from edsr.images import ImageReader, ends_whole
from edsr.wording import option


def is_finished(output: Path, size: tuple[int, int] | None) -> bool:
    """Whether an existing `output` is a whole image of `size`, (width, height), or of any size if that is unknown.

    Its header is read, and its end; its pixels are not decoded. An empty file, or the beginning of an image, is not
    finished, and may be replaced.

    Raises:
        ImageError: It is neither, and nobody has said that it may be replaced: a folder, or something else, or an
            image of another size.
    """
    if not os.path.isfile(output):
        kind = "a folder" if os.path.isdir(output) else "not a regular file"
        raise ImageError(f"{output}: is {kind}, where the result would be; name another output")
    if not ends_whole(output):
        return False
    try:
        with ImageReader(output, full=True) as reader:
            found = reader.width, reader.height
    except ImageError:
        return False
    if size is not None and found != size:
        sizes = f"{found[0]} x {found[1]} instead of {size[0]} x {size[1]}"
        raise ImageError(f"{output}: is there, but {sizes}; add {option('overwrite')} to replace it")
    return True
