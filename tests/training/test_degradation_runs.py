"""Runs with `train --degrade`: resumed, refused, validated; and the sheet that --preview writes."""

import contextlib
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from edsr import cli
from edsr.data import dataset
from edsr.data.degradation import parse_degradation
from edsr.data.patches import PatchLoader
from edsr.errors import TrainError
from edsr.training.trainer import train
from edsr.training.validation import Scores
from edsr.weights import load_model, read_info
from tests.conftest import training as options
from tests.data.test_degradation import ALL


@pytest.fixture
def runs(folder, tmp_path, tiny):
    """Runs a training with --degrade; gives what it yields."""

    def run(name="run", spec: str | None = ALL, **more):
        return list(train(options(folder, tmp_path / name, degrade=spec, **more)))

    return run


@pytest.mark.parametrize("stop", [1, 7])
def test_a_stopped_run_continues_as_if_it_had_not(runs, folder, tmp_path, stop):
    runs("whole")
    with contextlib.closing(train(options(folder, tmp_path / "parts", degrade=ALL))) as steps:
        for progress in steps:
            if progress.step == stop:
                break
    # Resumed by its name alone, it remembers.
    assert [p.step for p in runs("parts", None, resume=True, given=frozenset())] == list(range(stop + 1, 13))
    whole, parts = (load_model(tmp_path / run / "last.safetensors").state_dict() for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_run_with_another_spec_is_another_run(runs, tmp_path):
    runs()
    runs("plain", None)
    runs(resume=True, spec=f" {ALL}")  # spelled otherwise
    with pytest.raises(TrainError, match=r"started with degrade='jpeg:40-95,.*', not jpeg:40-90,clean:0.2"):
        runs(resume=True, spec="jpeg:40-90")
    with pytest.raises(TrainError, match=r"started with degrade='.*', not without"):
        runs(resume=True, spec=None)
    with pytest.raises(TrainError, match="started without degrade, not with jpeg:40-90"):
        runs("plain", resume=True, spec="jpeg:40-90")
    with pytest.raises(TrainError, match="degrade: 'jpg:9' is not known"):
        runs("new", "jpg:9")
    assert not (tmp_path / "new").exists()


def test_runs_of_before_there_was_degrade_go_on(runs, tmp_path):
    runs(spec=None)
    for path in (tmp_path / "run").glob("checkpoint-*/state.json"):
        older = re.sub(r',\s*"degrade": null', "", path.read_text())
        assert json.loads(older) and "degrade" not in older
        path.write_text(older)
    assert runs(spec=None, resume=True, given=frozenset()) == []
    with pytest.raises(TrainError, match="started without degrade"):
        runs(resume=True, given=frozenset({"degrade"}))


def test_validation_is_of_clean_and_of_degraded_images(runs, folder, tmp_path):
    steps = [p for p in runs(steps=15, lr=3e-3) if p.psnr is not None]
    assert all(p.psnr_degraded is not None and p.psnr_degraded != p.psnr for p in steps)
    assert f"{steps[0].psnr:.3f} dB, degraded {steps[0].psnr_degraded:.3f} dB" == steps[0].validated
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["psnr"], line["psnr_degraded"]) for line in logged] == [(p.psnr, p.psnr_degraded) for p in steps]
    training = read_info(tmp_path / "run" / "best.safetensors")["training"]
    best = max(steps, key=lambda p: (p.psnr + p.psnr_degraded) / 2)
    assert training["validation_psnr"] == pytest.approx(best.psnr, abs=1e-4)
    assert training["validation_psnr_degraded"] == pytest.approx(best.psnr_degraded, abs=1e-4)
    assert training["degrade"] == str(parse_degradation(ALL))
    plain = runs("plain", None)
    assert all(p.psnr_degraded is None for p in plain) and "degraded" not in plain[-1].validated
    assert "degrade" not in read_info(tmp_path / "plain" / "best.safetensors")["training"]


def test_the_best_is_best_by_the_mean_of_both(runs, tmp_path, monkeypatch):
    assert Scores(30.0).mean == 30 and Scores(30.0, 20.0).mean == 25
    scores = iter([30.0, 20.0, 31.0, 18.0, 29.0, 22.0])  # means: 25, 24.5, 25.5
    monkeypatch.setattr("edsr.training.validation.validate", lambda *_: (next(scores), {}))
    assert [p.psnr for p in runs() if p.psnr is not None] == [30, 31, 29]
    training = read_info(tmp_path / "run" / "best.safetensors")["training"]
    assert (training["validation_psnr"], training["steps"]) == (29, 12)


# ---- the sheet


def preview(folder, tmp_path, *more):
    command = ["train", "--data", str(folder), "--preview", str(tmp_path / "sheet"), "--device", "cpu", "--patch", "12"]
    return cli.main([*command, *more])


@pytest.mark.parametrize("scale", [2, 3])
def test_a_sheet_shows_what_the_run_draws(folder, tmp_path, capsys, scale):
    more = "--degrade", "jpeg:5-9,clean:0.5", "--batch", "3", "--scale", str(scale)
    assert preview(folder, tmp_path, *more) == 0
    out = capsys.readouterr()
    assert "degrade.png shows 20 patches of jpeg:5-9,clean:0.5" in out.err and out.out == ""
    assert [path.name for path in tmp_path.glob("sheet/*")] == ["degrade.png"]
    assert {path.name for path in tmp_path.iterdir()} == {"images", "sheet"}  # no run
    sheet = np.asarray(Image.open(tmp_path / "sheet" / "degrade.png"))
    loaded = dataset.train_val_split(dataset.load_dataset([str(folder)], scale, 12)[0])[0]
    spec = parse_degradation("jpeg:5-9,clean:0.5")
    loader = PatchLoader(loaded, 12, 3, 0, "cpu", 7, degradation=spec, candidates=4)
    loader.load(0, 7)
    text = sheet.tobytes()
    for k in range(20):
        low, high = (x[k % 3].permute(1, 2, 0).mul(255).round().byte() for x in loader.batch(torch.tensor(k // 3)))
        row = torch.cat([low[0].repeat_interleave(scale, 0), high[0]])  # side by side, the first line of pixels
        assert row.numpy().tobytes() in text
    assert preview(folder, tmp_path, *more) == 0  # in place of the other


def test_a_sheet_of_what_makes_no_sense_is_refused_in_a_line(folder, tmp_path, capsys):
    for code, says, more in [
        (2, "give --degrade SPEC", []),
        (2, "leave --resume out", ["--resume", "--degrade", "jpeg:40-90"]),
        (2, "is not known; there are", ["--degrade", "gif:1-2"]),
        (1, "choose another --preview", ["--degrade", "jpeg:40-90", "--preview", str(folder)]),
        (1, "give a folder with --preview", ["--degrade", "jpeg:40-90", "--preview", str(folder / "0.png")]),
    ]:
        assert preview(folder, tmp_path, *more) == code
        err = capsys.readouterr().err
        assert says in err and err.startswith("error: ") and err.count("\n") == 1


def test_the_command_line_tells_both(folder, tmp_path, capsys, tiny):
    command = ["train", "--data", str(folder), "--out", str(tmp_path / "run"), "--device", "cpu", "--patch", "8"]
    assert cli.main([*command, "--steps", "3", "--batch", "2", "--degrade", ALL]) == 0
    assert re.search(
        r"step 3 of 3: loss 0\.\d+, validation \d+\.\d{3} dB, degraded \d+\.\d{3} dB\n", capsys.readouterr().err
    )


def test_degraded_patches_are_not_recolored(folder, tmp_path, capsys):
    command = ["train", "--data", str(folder), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert cli.main([*command, "--degrade", "jpeg:40-90", "--recolor"]) == 2
    assert "--recolor does not go with --degrade: compression treats colors differently" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
