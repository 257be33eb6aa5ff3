import logging

import pytest

from tests.conftest import make_image

from .files import save


@pytest.fixture
def lines(caplog):
    """Gives the lines that were logged since it was last called."""
    caplog.set_level(logging.INFO, "edsr.data")

    def take():
        messages = [record.getMessage() for record in caplog.records if record.name.startswith("edsr.data")]
        caplog.clear()
        return messages

    return take


@pytest.fixture
def div2k(tmp_path):
    root = tmp_path / "DIV2K"
    for i in range(1, 4):
        save(root / "DIV2K_train_HR" / f"{i:04}.png", make_image(48, 60, seed=i))
    for i in range(801, 813):
        save(root / "DIV2K_valid_HR" / f"{i:04}.png", make_image(48, 36, seed=i))
    given = make_image(24, 30, seed=99)
    save(root / "DIV2K_train_LR_bicubic" / "X2" / "0002x2.png", given)
    save(root / "DIV2K_valid_LR_bicubic" / "X2" / "0801x2.png", make_image(24, 18, seed=99))
    return root
