"""Runs that diverge: seen in time, never published, never called ready; and runs that only look so."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edsr import cli
from edsr.data import dataset
from edsr.errors import TrainError
from edsr.models.edsr import EDSR, EDSRConfig
from edsr.training import checkpoint, recipe
from edsr.training.config import LOSSES, TrainConfig
from edsr.training.step import TrainStep
from edsr.training.trainer import train
from edsr.training.validation import bicubic_psnr, mean_absolute_error, probe_patches, validate
from edsr.weights import read_info
from tests.conftest import make_image, training

pytestmark = pytest.mark.usefixtures("tiny")


def error_of(config: TrainConfig) -> str:
    """The error that a run ends with, which is one line."""
    with pytest.raises(TrainError) as caught:
        list(train(config))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def published(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("*.safetensors"))


@pytest.fixture
def losses(monkeypatch):
    """Sets by how much the losses of steps, numbered from 1, are more than they are, in the next runs."""
    honest, times = TrainStep.run, {}

    def run(self, first, rates):
        return [loss * times.get(first + i + 1, 1.0) for i, loss in enumerate(honest(self, first, rates))]

    monkeypatch.setattr(TrainStep, "run", run)
    return times


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("steps", [1, 2, 12, 60])
def test_a_run_that_diverges_from_the_start_is_no_success(folder, tmp_path, loss, steps, lines):
    """Finite and absurd all the way, whether the end comes before the watch can see it, or after."""
    run = tmp_path / "run"
    error = error_of(training(folder, run, loss=loss, steps=steps, lr=10.0, val_every=1, save_every=1))
    assert "smaller lr" in error and sum("back to step 0" in line for line in lines) == 3
    assert published(run) in ([], ["best.safetensors", "last.safetensors"])
    if published(run):  # what was published is of before
        assert read_info(run / "last.safetensors")["training"]["steps"] == 1
    assert {path.name for path in run.glob("checkpoint-*")} <= {"checkpoint-00000000", "checkpoint-00000001"}


def test_the_command_fails_and_says_what_to_do(folder, tmp_path, capsys):
    small = ["--steps", "15", "--batch", "2", "--patch", "8", "--device", "cpu", "--init", "none"]
    assert cli.main(["train", "--data", str(folder), "--out", str(tmp_path / "run"), "--lr", "20", *small]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: at step ") and "start again with a smaller --lr" in lines[-1]
    assert not any("ready" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_high_rates_warm_ups_and_hard_images_are_no_divergence(folder, tmp_path, loss, lines):
    steps = {"loss": loss, "steps": 60, "val_every": 60, "save_every": 60}
    for lr in 5e-4, 2e-3:
        list(train(training(folder, tmp_path / f"{lr}", lr=lr, **steps)))
    init = {"init": str(tmp_path / "0.002" / "last.safetensors")}
    list(train(training(folder, tmp_path / "fine", lr=5e-4, batch=1, **init, **steps)))
    worse = {"degrade": "jpeg:10-50,noise:0-20", **init}
    list(train(training(folder, tmp_path / "worse", lr=5e-4, **worse, **steps)))
    list(train(training(folder, tmp_path / "short", **init, **(steps | {"steps": 3}))))
    assert not any("back to step" in line for line in lines)


def test_a_spike_is_neither_gone_back_from_nor_published(folder, tmp_path, losses, lines):
    """Steps 16 to 20, of which the last would be looked at and saved."""
    losses |= dict.fromkeys(range(16, 21), 50.0)
    run, seen = tmp_path / "run", {}
    for progress in train(training(folder, run, steps=40)):
        seen[progress.step] = (progress.psnr, read_info(run / "last.safetensors") if progress.step >= 5 else None)
    assert list(seen) == list(range(1, 41)) and not any("back to step" in line for line in lines)
    assert [step for step, (psnr, _) in seen.items() if psnr is not None] == [5, 10, 15, 25, 30, 35, 40]
    assert {seen[step][1]["training"]["steps"] for step in (20, 24)} == {15}


def test_a_run_stopped_while_in_doubt_is_resumed_from_before(folder, tmp_path, losses, lines):
    losses |= dict.fromkeys(range(11, 100), 1e6)
    run = tmp_path / "run"
    with contextlib.closing(train(training(folder, run, steps=30))) as steps:
        for progress in steps:
            if progress.step == 13:
                break
    assert any("step 13 is not saved, step 10 is" in line for line in lines)
    # Of the 20 losses that it takes, it has had 10 before.
    rest = train(training(folder, run, steps=30, resume=True))
    assert next(rest).step == 11
    with pytest.raises(TrainError, match="at step 20 the loss jumped"):
        list(rest)
    assert read_info(run / "last.safetensors")["training"]["steps"] == 10


def test_an_end_in_doubt_is_none(folder, tmp_path, losses, lines):
    """Losses of the last steps alone, too few for the watch, of a network that is well by all else."""
    losses |= dict.fromkeys(range(9, 13), 1e4)
    error = error_of(training(folder, tmp_path / "run"))
    assert "at step 12 the loss jumped" in error and sum("back to step" in line for line in lines) == 3
    assert read_info(tmp_path / "run" / "last.safetensors")["training"]["steps"] == 5


@pytest.mark.slow
def test_the_end_is_judged_by_what_the_run_began_with(folder, tmp_path, monkeypatch, lines):
    def run(name, *values):
        given = iter(values)
        monkeypatch.setattr("edsr.training.trainer.mean_absolute_error", lambda *_: next(given))
        return training(folder, tmp_path / name)

    error = error_of(run("worse", 0.1, 0.31, 0.32, 0.33, 0.34))
    assert "is 0.34 off the target, where it began with 0.1" in error and len(published(tmp_path / "worse")) == 2
    assert sum("back to step" in line for line in lines) == 3
    lines.clear()
    for name, *values in ("noisy", 0.1, 0.12), ("perfect", 0.0001, 0.0045), ("late", 0.1, 0.4, 0.08):
        assert list(train(run(name, *values)))[-1].finished
    assert not any("that was better" in line for line in lines)
    # What a high rate does to a good network in few steps: no failure, but told.
    assert list(train(run("hurt", 0.0065, 0.0136)))[-1].finished
    assert any("is 0.0136 off the target" in line and "that was better" in line for line in lines)
    error_of(run("learnt nothing", 1.2, 1.6, 1.6, 1.6, 1.6))
    error_of(run("no number", 0.1, *[float("nan")] * 4))


def test_a_misfit_is_a_mean_difference_that_is_not_cut_off(tmp_path):
    for i in range(6):
        Image.fromarray(make_image(150, 90 + i, seed=i)).save(tmp_path / f"{i}.png")
    images, _ = dataset.load_dataset([tmp_path], 2, 8)
    few = probe_patches(images, None)
    assert [few.pair(i)[0].shape for i in range(len(few))] == [(48, 45, 3), (48, 45, 3), (48, 46, 3), (48, 47, 3)]
    low, high = images.pair(0)
    assert np.array_equal(few.pair(0)[0], low[13:61]) and np.array_equal(few.pair(0)[1], high[26:122])
    m = EDSR(EDSRConfig(blocks=1, features=8))
    for p in m.tail.parameters():
        p.data.zero_()
    gray = np.array(m.config.mean)
    want = [np.abs(few.pair(i)[1] / 255 - gray).mean() for i in range(len(few))]
    assert mean_absolute_error(m, few) == pytest.approx(np.mean(want), rel=1e-5)
    assert mean_absolute_error(m, few) < recipe.UNTRAINED
    torch.nn.init.constant_(m.tail.bias, 1e9)
    assert mean_absolute_error(m, few) == pytest.approx(1e9)


def test_a_run_that_has_learned_less_than_bicubic_says_so(folder, tmp_path, monkeypatch, lines):
    list(train(training(folder, tmp_path / "run")))
    _, held = dataset.train_val_split(dataset.load_dataset([folder], 2, 8)[0])
    assert held is not None
    m = EDSR(EDSRConfig(blocks=1, features=8))
    _, samples = validate(m, held, 2)
    from edsr.evaluation.metrics import score

    side = samples["sample/0"].shape[1] // 3
    bicubic, target = samples["sample/0"][:, :side], samples["sample/0"][:, -side:]
    assert bicubic_psnr(held) == pytest.approx(score(bicubic, target, 2)[0], abs=0.01)
    assert sum(f"where bicubic has {bicubic_psnr(held):.2f}" in line for line in lines) == 1
    monkeypatch.setattr("edsr.training.validation.validate", lambda *_: (bicubic_psnr(held) + 0.1, {}))
    lines.clear()
    list(train(training(folder, tmp_path / "good")))
    assert not any("where bicubic" in line for line in lines)


@pytest.mark.parametrize("how", ["resume", "decay"])
def test_nothing_goes_on_from_a_run_that_diverged_unseen(folder, tmp_path, how):
    """As earlier versions left it: absurd weights, and a watch whose means had followed."""
    run = tmp_path / "run"
    with contextlib.closing(train(training(folder, run, schedule="wsd"))) as steps:
        for progress in steps:
            if progress.step == 8:
                break
    last = checkpoint.load_latest(run)
    tensors = {name: 1e9 * t if name.startswith(("model", "ema")) else t for name, t in last.tensors.items()}
    record = last.record | {"divergence": [7e31, 7e31, 300]}
    del record["initial_error"]
    checkpoint.write(run, last._replace(tensors=tensors, record=record))
    before = sorted(tmp_path.rglob("*"))
    again = TrainConfig((), str(run), resume=True, given=frozenset(), device="cpu")
    error = error_of(again if how == "resume" else replace(again, out="", source=str(run), decay=4))
    assert "has diverged" in error and "smaller lr" in error
    assert sorted(tmp_path.rglob("*")) == before


def test_a_decay_is_judged_by_its_own_beginning(folder, tmp_path, monkeypatch):
    run = tmp_path / "run"
    list(train(training(folder, run, schedule="wsd")))
    values = iter([0.02, *[0.07] * 4])
    monkeypatch.setattr("edsr.training.trainer.mean_absolute_error", lambda *_: next(values))
    error = error_of(TrainConfig((), "", resume=True, given=frozenset(), device="cpu", source=str(run), decay=4))
    assert "where it began with 0.02" in error


def test_checkpoints_of_before_go_on_and_are_gone_back_to(folder, tmp_path, losses, lines):
    run = tmp_path / "run"
    with contextlib.closing(train(training(folder, run))) as steps:
        for progress in steps:
            if progress.step == 8:
                break
    for state in run.glob("checkpoint-*/state.json"):
        older = json.loads(state.read_text())
        del older["record"]["initial_error"], older["record"]["remembered"]["init"]
        older["record"]["divergence"] = [0.2, 0.2, older["step"]]
        state.write_text(json.dumps(older))
    losses[9] = float("inf")
    done = []
    for progress in train(training(folder, run, resume=True)):
        losses.clear()
        done.append(progress)
    assert done[-1].finished and sum("back to step" in line for line in lines) == 1


def test_other_images_may_be_harder(folder, tmp_path, losses, lines):
    """The watch begins anew; with the same images it is a jump."""
    run = tmp_path / "run"
    losses |= dict.fromkeys(range(1, 41), 0.05)
    list(train(training(folder, run, schedule="wsd", steps=40, lr=1e-4)))
    Image.fromarray(make_image(64, 60, seed=8)).save(folder / "new.png")
    list(train(training(folder, run, schedule="wsd", steps=80, lr=1e-4, resume=True)))
    assert any("not those" in line for line in lines) and not any("back to step" in line for line in lines)


def test_rates_are_recorded_after_a_setback(folder, tmp_path, losses, lines):
    """At step 12 of 20 a loss that is no number, once."""
    losses[12] = float("nan")
    run = tmp_path / "run"
    for progress in train(training(folder, run, steps=20)):
        if progress.rolled_back:
            losses.clear()
    assert any("back to step 5" in line for line in lines)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [5, 5, 10, 15, 20]  # those of the first way are gone
    assert logged[1] == {"step": 5, "rollbacks": 1, "lr_factor": 0.5}
    rates = [recipe.learning_rate(step - 1, 20, 1e-3) for step in (5, 10, 15, 20)]
    assert [line["lr"] for line in logged if "lr" in line] == pytest.approx([rates[0], *(r / 2 for r in rates[1:])])
    assert read_info(run / "last.safetensors")["training"]["lr_factor"] == 0.5
    record = checkpoint.load_latest(run).record
    assert (record["lr_factor"], record["rollbacks"]) == (0.5, 1)


def test_a_run_resumed_after_a_rollback_goes_on_from_there(folder, tmp_path, losses):
    """Not from a checkpoint that was written on the way given up, before what was wrong had shown."""
    runs = [tmp_path / "whole", tmp_path / "stopped"]
    for run in runs:
        config = training(folder, run, steps=90, lr=1e-4, val_every=30, save_every=15)
        losses.update(dict.fromkeys(range(62, 90), 1e4))
        steps, rolled_back = train(config), 0
        for progress in steps:
            if progress.rolled_back:
                losses.clear()
                rolled_back, left = progress.step, {path.name for path in run.glob("checkpoint-*")}
            if run == runs[1] and rolled_back and progress.step == 50:
                break
        steps.close()
        assert rolled_back == 45 and left == {"checkpoint-00000045"}
    assert next(iter(train(replace(config, resume=True)))).step == 51
    list(train(replace(config, resume=True)))
    whole, stopped = map(checkpoint.load_latest, runs)
    for found in whole, stopped:
        assert (found.step, found.record["rollbacks"], found.record["lr_factor"]) == (90, 1, 0.5)
    assert all(torch.equal(tensor, stopped.tensors[name]) for name, tensor in whole.tensors.items())


def test_a_rollback_is_remembered_at_once(folder, tmp_path, losses):
    """A run that ends before the next checkpoint has its smaller rate."""
    losses.update(dict.fromkeys(range(62, 90), 1e4))
    config = training(folder, tmp_path / "run", steps=90, lr=1e-4, val_every=30, save_every=15)
    for progress in train(config):
        if progress.rolled_back:
            break
    latest = checkpoint.load_latest(tmp_path / "run")
    assert (latest.step, latest.record["rollbacks"], latest.record["lr_factor"]) == (45, 1, 0.5)


def test_a_rollback_is_reported(folder, tmp_path, losses):
    losses[3] = float("nan")
    seen = []
    for progress in train(training(folder, tmp_path / "run")):
        seen.append((progress.step, progress.rolled_back))
        if progress.rolled_back:
            losses.clear()
    assert seen == [(1, False), (2, False), (0, True), *((step, False) for step in range(1, 13))]
