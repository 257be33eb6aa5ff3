import contextlib
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from edsr import load_model
from edsr.data import DataError, PatchSampler, load_pairs
from edsr.model import PRESETS, EDSRConfig
from edsr.resize import downscale
from edsr.train import TrainOptions, train, validate
from edsr.weights import WeightsError, read_info, save_model
from tests.conftest import network, picture

TINY = EDSRConfig(blocks=1, features=8)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(PRESETS, "edsr-baseline", TINY)


@pytest.fixture
def folder(tmp_path):
    where = tmp_path / "pictures"
    where.mkdir()
    for i in range(4):
        Image.fromarray(picture(60 + i, 70, seed=i)).save(where / f"{i}.png")
    return where


def options(folder, out, **more):
    return TrainOptions(
        **{
            "data": (str(folder),),
            "out": str(out),
            "steps": 12,
            "batch": 2,
            "patch": 8,
            "val_every": 5,
            "lr": 1e-3,
        }
        | more
    )


def test_patches_are_aligned_and_repeatable():
    pairs = [(downscale(p, 2), p) for p in (picture(40, 60), picture(80, 30, seed=1))]
    sampler = PatchSampler(pairs, 2, 8, 16, seed=3)
    low, high = sampler(7)
    assert low.shape == (16, 3, 8, 8) and high.shape == (16, 3, 16, 16)
    assert low.dtype == torch.float32 and low.min() >= 0 and high.max() <= 1
    again = PatchSampler(pairs, 2, 8, 16, seed=3)(7)
    assert torch.equal(low, again[0]) and torch.equal(high, again[1])
    assert not torch.equal(low, sampler(8)[0])
    # A patch of the reduction is the reduction of the patch, away from its border: so they fit, turned alike.
    for x, y in zip(low, high, strict=True):
        reduced = downscale((y.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8), 2)
        difference = np.abs(reduced - x.permute(1, 2, 0).numpy() * 255)[2:-2, 2:-2]
        assert difference.max() < 1.5


def test_every_place_and_turn_is_drawn():
    """A picture of distinct pixels, patches of one: every LR pixel and, over many, all eight turns of a 2 x 2."""
    low = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    high = low.repeat(2, 0).repeat(2, 1)
    seen = {
        int(v) for step in range(30) for v in (PatchSampler([(low, high)], 2, 1, 8, 0)(step)[0][:, 0] * 255).flatten()
    }
    assert seen == set(range(0, 48, 3))
    whole = PatchSampler([(low, high)], 2, 4, 8, 0)
    turns = {tuple((patch[0] * 255).round().int().flatten().tolist()) for step in range(20) for patch in whole(step)[0]}
    assert len(turns) == 8


def test_pictures_that_cannot_serve_are_named(folder):
    (folder / "bad.png").write_bytes(b"no picture")
    Image.fromarray(picture(9, 9)).save(folder / "small.png")
    Image.fromarray(picture(40, 40, 1)[:, :, 0]).save(folder / "gray.png")
    lines: list[str] = []
    pairs = load_pairs(sorted(folder.iterdir()), 3, 8, lines.append)
    assert len(pairs) == 5 and all(lr.shape[2] == hr.shape[2] == 3 for lr, hr in pairs)
    assert len(lines) == 2 and "bad.png" in lines[0] and "small.png: 9 x 9" in lines[1]
    with pytest.raises(DataError, match="no picture left"):
        load_pairs([folder / "small.png"], 3, 8, lines.append)


def test_training_learns_and_leaves_weights(folder, tmp_path):
    out = tmp_path / "run"
    steps = list(train(options(folder, out, steps=60, val_every=20)))
    assert [p.step for p in steps] == list(range(1, 61))
    assert np.mean([p.loss for p in steps[-10:]]) < 0.6 * np.mean([p.loss for p in steps[:5]])
    assert [p.step for p in steps if p.psnr is not None] == [20, 40, 60]
    for name in "last.safetensors", "best.safetensors":
        model = load_model(out / name)
        assert model.config == TINY
    assert read_info(out / "last.safetensors")["training"]["steps"] == 60
    best = max(p.psnr for p in steps if p.psnr is not None)
    assert read_info(out / "best.safetensors")["training"]["validation_psnr"] == pytest.approx(best, abs=1e-4)
    assert {p.name for p in out.iterdir()} == {"last.safetensors", "best.safetensors", "state.pt"}


def test_without_validation_the_best_is_the_last(folder, tmp_path):
    for name in "123":
        (folder / f"{name}.png").unlink()
    assert all(p.psnr is None for p in train(options(folder, tmp_path / "run")))
    last, best = (load_model(tmp_path / "run" / f"{name}.safetensors") for name in ("last", "best"))
    assert torch.equal(last.head.weight, best.head.weight)


def test_the_learning_rate_rises_and_falls_to_nothing(folder, tmp_path):
    rates = [p.lr for p in train(options(folder, tmp_path / "run", steps=100, lr=1.0e-3))]
    assert rates[:2] == pytest.approx([5e-4, 1e-3])
    assert all(a >= b for a, b in itertools.pairwise(rates[2:])) and rates[-1] < 1e-6
    assert rates[51] == pytest.approx(5e-4, rel=1e-2)


@pytest.mark.parametrize("stop", [1, 5, 7])
def test_a_stopped_run_continues_as_if_it_had_not(folder, tmp_path, stop):
    list(train(options(folder, tmp_path / "whole")))
    with contextlib.closing(train(options(folder, tmp_path / "parts"))) as steps:
        for progress in steps:
            if progress.step == stop:
                break
    rest = [p.step for p in train(options(folder, tmp_path / "parts", resume=True))]
    assert rest == list(range(stop + 1, 13))
    whole, parts = (load_model(tmp_path / run / "last.safetensors").state_dict() for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_other_scales_start_from_the_body_of_x2(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("edsr.weights.FOLDER", tmp_path)
    lines: list[str] = []
    list(train(options(folder, tmp_path / "scratch", scale=3, steps=1, lr=0), lines.append))
    assert any("random" in line for line in lines)
    m = network(2, 1, 8).float()
    save_model(m, tmp_path / "edsr-baseline-x2.safetensors")
    for scale in 3, 4:
        list(train(options(folder, tmp_path / f"x{scale}", scale=scale, steps=1, lr=0), lines.append))
        started = load_model(tmp_path / f"x{scale}" / "last.safetensors")
        assert torch.equal(started.body[0].conv1.weight, m.body[0].conv1.weight)
        assert torch.equal(started.head.weight, m.head.weight)
        assert started.config.scale == scale
    assert "starting from edsr-baseline" in " ".join(lines)


def test_validation_is_psnr_of_rounded_luma():
    m = network(2).float()
    image = picture(40, 40)
    low = downscale(image, 2)
    from edsr import Upscaler
    from edsr.metrics import score

    want = score(Upscaler(m, device="cpu")(low), image, 2)[0]
    assert validate(m, [(low, image)], 2) == pytest.approx(want, abs=1e-3)


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"model": "srcnn"}, WeightsError, "unknown model"),
        ({"steps": 0}, DataError, "--steps"),
        ({"batch": 0}, DataError, "--batch"),
        ({"patch": 400}, DataError, "no picture left"),
        ({"resume": True}, DataError, "no run to resume"),
        ({"init": "nowhere.safetensors"}, WeightsError, "nowhere.safetensors"),
    ],
)
def test_misuse_is_told_in_one_line(folder, tmp_path, more, error, says):
    with pytest.raises(error, match=says) as caught:
        list(train(options(folder, tmp_path / "run", **more)))
    assert "\n" not in str(caught.value)


def test_a_run_is_not_overwritten_nor_mixed(folder, tmp_path):
    list(train(options(folder, tmp_path / "run")))
    with pytest.raises(DataError, match="holds a run already"):
        list(train(options(folder, tmp_path / "run")))
    with pytest.raises(DataError, match="--batch 2, not 3"):
        list(train(options(folder, tmp_path / "run", resume=True, batch=3)))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        list(train(options(folder, tmp_path / "file")))


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(folder, tmp_path):
    steps = train(options(folder, tmp_path / "run", lr=1e30, val_every=1))
    with pytest.raises(DataError, match="smaller --lr"):
        list(steps)
