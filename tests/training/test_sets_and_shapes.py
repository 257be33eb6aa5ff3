"""Validation on several sets, and networks of other shapes than the presets'."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from edsr.data import dataset
from edsr.errors import DataError, TrainError
from edsr.models.edsr import DIV2K_MEAN, EDSRConfig
from edsr.training import checkpoint
from edsr.training.run_record import check_record
from edsr.training.trainer import train
from edsr.training.validation import bicubic_psnr, validate
from edsr.weights import load_model, read_info, save_model
from tests.conftest import make_image, network, training

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def sets(tmp_path) -> list[str]:
    """Two folders of the same name and a third, of 1, 2 and 1 images."""
    folders = [tmp_path / "x" / "set", tmp_path / "other", tmp_path / "y" / "set"]
    for seed, (folder, count) in enumerate(zip(folders, (1, 2, 1), strict=True)):
        folder.mkdir(parents=True)
        for i in range(count):
            Image.fromarray(make_image(40, 44 + 10 * i, seed=10 * seed + i)).save(folder / f"{i}.png")
    return [str(folder) for folder in folders]


def test_each_validation_set_has_a_score_and_their_mean_counts(folder, tmp_path, sets, lines):
    run = tmp_path / "run"
    last = list(train(training(folder, run, steps=3, val=tuple(sets))))[-1]
    images = {name: dataset.load_validation(at, 2) for name, at in zip(("set", "other", "set-3"), sets, strict=True)}
    model = load_model(run / "last.safetensors")
    wanted = {name: validate(model, one, 2)[0] for name, one in images.items()}
    assert dict(last.psnr_sets) == pytest.approx(wanted, abs=1e-3)
    assert last.psnr == pytest.approx(np.mean([*wanted.values()]), abs=1e-3)
    assert last.validated.endswith(" dB ({})".format(", ".join(f"{n} {p:.3f}" for n, p in last.psnr_sets.items())))
    logged = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {name: logged[f"psnr/{name}"] for name in wanted} == dict(last.psnr_sets)
    kept = read_info(run / "best.safetensors")["training"]
    assert kept["validation_psnr"] == pytest.approx(last.psnr, abs=1e-4)
    mean = np.mean([bicubic_psnr(one) for one in images.values()])
    assert any(line.startswith("validation  4, ") and f"bicubic has {mean:.2f} dB" in line for line in lines)
    assert f"  other     2; {bicubic_psnr(images['other']):.2f} dB" in lines


def test_several_sets_are_remembered_and_one_is_as_it_was(folder, tmp_path, sets):
    for val in sets[0], (sets[0],), tuple(sets[:2]):
        run = tmp_path / str(len(val))
        with_val = train(training(folder, run, val=val))
        next(with_val)
        with_val.close()
        record = checkpoint.load_latest(run, check=check_record).record
        assert record["remembered"]["val"] == (sets[0] if val in (sets[0], (sets[0],)) else sets[:2])
        more = training((), run, resume=True, data=(), given=frozenset())
        assert all(bool(p.psnr_sets) is (len(val) == 2) for p in train(more) if p.psnr is not None)


def test_a_set_with_nothing_to_score_is_named(folder, tmp_path, sets):
    empty = tmp_path / "flat"
    empty.mkdir()
    Image.fromarray(np.full((40, 40, 3), 7, np.uint8)).save(empty / "a.png")
    with pytest.raises(DataError, match="flat: no image of 6 x 6"):
        list(train(training(folder, tmp_path / "run", val=(sets[0], str(empty)))))


@pytest.mark.parametrize(
    ("data", "val", "warned"),
    [
        ("all", "all", True),
        ("all", "all/part", True),
        ("all/part", "all", True),
        ("all/part", "all/p", False),
        ("div", "div", False),
        ("div", "div/DIV2K_valid_HR", False),
        ("div", "div/DIV2K_train_HR", True),
    ],
)
def test_validation_on_what_is_trained_on_is_warned_of(tmp_path, data, val, warned, caplog):
    for name in "all/part", "all/p", "div/DIV2K_train_HR", "div/DIV2K_valid_HR":
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(make_image(40, 40)).save(tmp_path / name / "a.png")
    next(train(training(tmp_path / data, tmp_path / "run", val=str(tmp_path / val))))
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "trained on" in r.message]
    assert len(warnings) == warned and all(val in line and data in line for line in warnings)


def test_a_network_of_another_shape_is_trained_and_remembered(folder, tmp_path, monkeypatch, lines):
    monkeypatch.setattr("edsr.weights.files.FOLDER", tmp_path)
    save_model(network(2, 1, 8).float(), tmp_path / "edsr-baseline-x2.safetensors")
    run, shape = tmp_path / "run", {"blocks": 2, "features": 12, "residual_scale": 0.5}
    wanted = EDSRConfig(3, mean=DIV2K_MEAN, **shape)
    steps = train(training(folder, run, scale=3, **shape))
    next(steps)
    steps.close()
    assert "starting from random weights" in lines and any(line[12:].startswith("EDSR x3: 2 blocks") for line in lines)
    assert load_model(run / "last.safetensors").config == wanted
    list(train(training((), run, resume=True, data=(), given=frozenset())))
    assert load_model(run / "last.safetensors").config == wanted
    list(train(training(folder, tmp_path / "whole", scale=3, **shape)))
    parts, whole = (load_model(tmp_path / name / "last.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(p, q) for p, q in zip(parts.parameters(), whole.parameters(), strict=True))
    for name, value in ("blocks", 3), ("residual_scale", 0.25):
        changed = training(folder, run, resume=True, scale=3, **shape | {name: value})
        with pytest.raises(TrainError, match=f"with {name}={shape[name]}, not {value}"):
            list(train(changed))


def test_a_run_of_a_preset_takes_no_other_shape_later(folder, tmp_path):
    run = tmp_path / "run"
    list(train(training(folder, run)))
    assert not {"blocks", "features", "residual_scale"} & checkpoint.load_latest(run).record["options"].keys()
    with pytest.raises(TrainError, match="without blocks, not with 2"):
        list(train(training(folder, run, resume=True, blocks=2)))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"blocks": 0}, "blocks must be 1 or more"),
        ({"features": -1}, "features must be 1 or more"),
        ({"residual_scale": float("nan")}, "residual_scale must be above 0"),
        ({"network": EDSRConfig(blocks=1), "features": 8}, "leave blocks, features and residual_scale out"),
    ],
)
def test_no_network_has_such_a_shape(folder, tmp_path, more, says):
    with pytest.raises(TrainError, match=says):
        list(train(training(folder, tmp_path / "run", **more)))
    assert not (tmp_path / "run").exists()
