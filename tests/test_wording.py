"""Messages name choices as their reader makes them: arguments in Python, options on the command line."""

import re

import numpy as np
import pytest
import torch

from edsr import EDSR, BackendError, EDSRConfig, EDSRError, Upscaler, cli
from edsr.images import ImageReader, ImageWriter, read_image
from edsr.wording import either, for_command_line, option
from tests.support.image_files import make_image, write

OPTION = re.compile(r"(?<![\w-])--[a-z]")
MODEL = EDSR(EDSRConfig(blocks=1, features=8))


def test_both():
    assert option("tile", 64) == "tile=64" and option("device", "cpu") == "device='cpu'"
    with pytest.raises(ZeroDivisionError), for_command_line():
        assert option("tile", 64) == "--tile 64" and option("device", "cpu") == "--device cpu"
        assert option("overwrite") == "--overwrite" and option("val_every", 5) == "--val-every 5"
        assert either("a", "b") == "b"
        _ = 1 / 0
    assert option("overwrite") == "overwrite=True" and either("a", "b") == "a"


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("there.png", make_image(9, 9))
    write("range.tif", make_image(9, 9).astype(np.float32))
    (tmp_path / "cut.png").write_bytes((tmp_path / "there.png").read_bytes()[:-30])


FAULTS = {  # what -> how in Python, what it says there, how on the command line, what it says there
    "device": (
        lambda: Upscaler(MODEL, "cuda"),
        "use device='cpu' or auto",
        ["there.png", "--device", "cuda"],
        "use --device cpu or auto",
    ),
    "overwrite": (
        lambda: ImageWriter("there.png", 9, 9, 3),
        "add overwrite=True",
        ["range.tif", "--range=0,255", "-o", "there.png"],
        "add --overwrite",
    ),
    "salvage": (lambda: read_image("cut.png"), "by ImageReader(salvage=True)", ["cut.png"], "by upscale --salvage"),
    "range": (
        lambda: read_image("range.tif", full=True),
        "such as value_range=ValueRange(0, 255)",
        ["range.tif"],
        "such as --range=0,255",
    ),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="is refused where there is no GPU")
@pytest.mark.parametrize("name", FAULTS)
def test_messages(files, capsys, name):
    in_python, said, arguments, option_said = FAULTS[name]
    with pytest.raises(EDSRError) as error:
        in_python()
    assert said in str(error.value) and not OPTION.search(str(error.value))
    assert cli.main(["upscale", *arguments, "--model", "edsr-baseline"]) in (1, 2)
    err = capsys.readouterr().err
    assert option_said in err and said not in err


def test_what_is_said_there_works(files):
    assert len(list(ImageReader("cut.png", salvage=True).rows(9))) == 1
    assert Upscaler(MODEL, torch.device("cpu"), backend="torch").device == torch.device("cpu")
    for wrong in None, 3, "gpu":
        with pytest.raises(BackendError, match="unknown device"):
            Upscaler(MODEL, wrong)
