"""Weights & Biases, in the place of which a module of the same face stands here."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from edsr.errors import TrainError
from edsr.training.trainer import train
from tests.conftest import training

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def wandb(monkeypatch):
    """What it is given."""
    seen = SimpleNamespace(begun=[], logged=[], ended=0)

    class Run:
        id = "abc123"

        def log(self, values, step):
            seen.logged.append((step, values))

        def finish(self):
            seen.ended += 1

    module = ModuleType("wandb")
    module.__dict__.update(
        init=lambda **options: (seen.begun.append(options), Run())[1], Image=lambda image: image.shape
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    return seen


def test_a_run_is_logged_and_goes_on_where_it_was(folder, tmp_path, wandb):
    run = tmp_path / "run"
    steps = train(training(folder, run, wandb="faces"))
    for progress in steps:
        if progress.step == 6:
            break
    steps.close()
    assert wandb.begun == [{"project": "faces", "name": "run", "dir": str(run), "id": None, "resume": None}]
    assert wandb.ended == 1 and [step for step, _ in wandb.logged] == [5, 5]
    images, scalars = (values for _, values in wandb.logged)
    assert list(images) == ["sample/0"] and {"loss", "lr", "psnr"} <= scalars.keys()
    list(train(training(folder, run, resume=True, wandb="faces")))
    assert wandb.begun[1] == wandb.begun[0] | {"id": "abc123", "resume": "allow"}
    assert [step for step, values in wandb.logged if "loss" in values] == [5, 10, 12]


def test_nothing_is_sent_unless_asked(folder, tmp_path, wandb):
    list(train(training(folder, tmp_path / "run")))
    assert not wandb.begun


def test_without_the_package_nothing_begins(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrainError, match="pip install wandb"):
        list(train(training(folder, tmp_path / "run", wandb="faces")))
    assert not (tmp_path / "run").exists()
