"""Runs that go on: with what they remember, for as long as one likes, or to their decay."""

import contextlib
import hashlib
import json
import re
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save

from edsr.errors import TrainError
from edsr.training import checkpoint, recipe
from edsr.training.config import AUTO, SCHEDULES, TrainConfig
from edsr.training.trainer import train
from edsr.weights import load_model, read_info
from tests.conftest import make_image, training

pytestmark = pytest.mark.usefixtures("tiny")


def hashes(run: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(run.rglob("*")) if p.is_file()}


def stopped(options: TrainConfig, step: int) -> Path:
    with contextlib.closing(train(options)) as steps:
        for progress in steps:
            if progress.step == step:
                break
    return Path(options.out)


def resumed(run: Path, *given: str, **more) -> TrainConfig:
    """As the command line has it: defaults for all that was not given."""
    more = {"data": (), "out": str(run)} | more
    return TrainConfig(resume=True, given=frozenset(given), device="cpu", **more)


def decay(run: Path, steps, **more) -> TrainConfig:
    more = {"data": (), "out": "", "given": frozenset()} | more
    return TrainConfig(resume=True, source=str(run), decay=steps, device="cpu", **more)


def test_a_run_remembers_what_it_was(folder, tmp_path, monkeypatch, lines):
    val = tmp_path / "val"
    val.mkdir()
    Image.fromarray(make_image(40, 40, seed=7)).save(val / "v.png")
    monkeypatch.chdir(tmp_path)  # begun by paths that mean nothing elsewhere
    chosen = {"val": "val", "crop": 32, "cache": "cache", "loss": "l2", "seed": 3, "schedule": "step"}
    list(train(training("images", tmp_path / "whole", **chosen)))
    stopped(training("images", tmp_path / "parts", **chosen), 7)
    monkeypatch.chdir(folder)
    rest = list(train(resumed(tmp_path / "parts")))
    assert [p.step for p in rest] == list(range(8, 13)) and not any("not those" in line for line in lines)
    assert [p.step for p in rest if p.psnr is not None] == [10, 12]  # --val-every 5
    whole, parts = (checkpoint.load_latest(tmp_path / run) for run in ("whole", "parts"))
    assert all(torch.equal(whole.tensors[name], parts.tensors[name]) for name in whole.tensors)
    assert not any(path.name == "cache" for path in folder.iterdir())


def test_what_is_given_must_be_what_it_was_but_for_what_may_change(folder, tmp_path):
    run = stopped(training(folder, tmp_path / "run"), 3)
    with pytest.raises(TrainError, match="batch=2, not 16"):
        list(train(resumed(run, "batch")))
    with pytest.raises(TrainError, match="steps=12, not 300000"):
        list(train(resumed(run, "steps")))
    rates = [p.lr for p in train(resumed(run, "lr", lr=5e-4))]
    assert rates == pytest.approx([recipe.learning_rate(step, 12, 5e-4) for step in range(3, 12)])


def test_all_that_is_not_what_it_was_is_named_at_once_and_before_a_image_is_read(folder, tmp_path, monkeypatch):
    run = stopped(training(folder, tmp_path / "run"), 3)
    before = hashes(run)
    monkeypatch.setattr("edsr.training.setup.load_images", lambda *_: pytest.fail("images are read"))
    wrong = {"scale": 3, "steps": 20, "loss": "l2", "degrade": "jpeg:40-90", "init": "elsewhere/other.safetensors"}
    wrong |= {"crop": 64, "lr": 1e-5}  # of which the rate may change
    with pytest.raises(TrainError) as caught:
        list(train(resumed(run, *(set(wrong) - {"init"}), **wrong)))
    for says in (
        "run was started without init, not with other.safetensors; ",
        "with scale=2, not 3; ",
        "with steps=12, not 20; ",
        "with loss='l1', not l2; ",
        "without crop, not with 64; ",
        "without degrade, not with jpeg:40-90",
    ):
        assert says in str(caught.value)
    assert str(caught.value).count(", not ") == 6 and "\n" not in str(caught.value)
    with pytest.raises(TrainError, match="with batch=2, not 3; with patch=8, not 9"):
        list(train(decay(run, 4, batch=3, patch=9, given=frozenset({"batch", "patch"}))))
    assert hashes(run) == before and not (tmp_path / "run-decay-3").exists()


@pytest.mark.parametrize(("option", "of_before", "now"), [("candidates", 1, 4), ("recolor", False, True)])
def test_runs_of_before_there_was_an_option_go_on_without(folder, tmp_path, option, of_before, now):
    whole = list(train(training(folder, tmp_path / "whole", **{option: of_before})))
    chosen = list(train(training(folder, tmp_path / "chosen", **{option: now})))
    assert [p.loss for p in whole] != [p.loss for p in chosen]
    run = stopped(training(folder, tmp_path / "run", **{option: of_before}), 3)
    for path in run.glob("checkpoint-*/state.json"):
        older = re.sub(rf',\s*"{option}": {json.dumps(of_before)}', "", path.read_text())
        assert json.loads(older) and option not in older
        path.write_text(older)
    with pytest.raises(TrainError, match=f"with {option}={of_before}, not {now}"):
        list(train(resumed(run, option, **{option: now})))
    assert [p.loss for p in train(resumed(run))] == [p.loss for p in whole[3:]]


def test_a_recolored_run_resumes_exactly(folder, tmp_path):
    whole = list(train(training(folder, tmp_path / "whole", recolor=True)))
    run = stopped(training(folder, tmp_path / "run", recolor=True), 3)
    assert [p.loss for p in train(resumed(run))] == [p.loss for p in whole[3:]]
    for name in "last.safetensors", "best.safetensors":
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert read_info(run / "last.safetensors")["training"]["recolor"] is True


def test_weights_to_start_from_are_compared_by_name(folder, tmp_path):
    list(train(training(folder, tmp_path / "first", steps=1)))
    init = tmp_path / "first" / "last.safetensors"
    run = stopped(training(folder, tmp_path / "run", init=str(init)), 3)
    init.rename(tmp_path / "last.safetensors")  # moved, as to another machine, and not needed any more
    with pytest.raises(TrainError, match=r"started with init='last\.safetensors', not none"):
        list(train(resumed(run, init="none")))
    stopped(resumed(run), 5)
    again = training(folder, run, resume=True, init=str(tmp_path / "last.safetensors"))
    assert list(train(again))[-1].finished


def test_a_run_remembers_the_rate_that_it_was_given_last(folder, tmp_path):
    run = stopped(training(folder, tmp_path / "run"), 3)
    stopped(resumed(run, "lr", lr=5e-4), 6)
    assert checkpoint.load_latest(run).record["remembered"]["lr"] == 5e-4
    assert read_info(run / "last.safetensors")["training"]["lr"] == 5e-4
    rates = [p.lr for p in train(resumed(run))]
    assert rates == pytest.approx([recipe.learning_rate(step, 12, 5e-4) for step in range(6, 12)])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["lr"]) for line in lines] == [
        (step, pytest.approx(recipe.learning_rate(step - 1, 12, 5e-4))) for step in (5, 10, 12)
    ]


def test_a_run_from_before_runs_remembered_needs_its_images_named(folder, tmp_path):
    run = stopped(training(folder, tmp_path / "run"), 3)
    last = checkpoint.load_latest(run)
    del last.record["remembered"], last.record["decay"]
    checkpoint.write(run, last)
    checkpoint.write(run, last._replace(step=4))
    with pytest.raises(TrainError, match="name them with data"):
        list(train(resumed(run)))
    assert list(train(resumed(run, "data", data=(str(folder),))))[-1].finished


def to_version_1(run: Path) -> None:
    """Gives the checkpoints of a run the names that they had in version 1."""
    record = {"best_psnr": "best", "lr_factor": "factor", "rollbacks": "setbacks", "divergence": "watch"}
    record |= {"images": "pictures", "initial_error": "misfit"}
    prefixes = {"model": "model", "ema": "average", "optimizer": "adam"}
    for folder in run.glob("checkpoint-*"):
        state = json.loads((folder / "state.json").read_text())
        state["version"] = 1
        assert record.keys() <= state["record"].keys()
        state["record"] = {record.get(key, key): value for key, value in state["record"].items()}
        for name in state["files"]:
            tensors = {}
            for key, tensor in load_file(folder / name).items():
                first, rest = key.split(".", 1)
                tensors[f"{prefixes[first]}.{rest}"] = tensor
            data = save(tensors)
            (folder / name).write_bytes(data)
            state["files"][name] = [len(data), zlib.crc32(data)]
        (folder / "state.json").write_text(json.dumps(state))


def test_checkpoints_of_version_1_go_on_to_the_same_bits(folder, tmp_path):
    list(train(training(folder, tmp_path / "whole")))
    run = stopped(training(folder, tmp_path / "parts"), 7)
    to_version_1(run)
    assert [p.step for p in train(resumed(run))] == list(range(8, 13))
    whole, parts = (checkpoint.load_latest(where) for where in (tmp_path / "whole", run))
    assert whole.tensors.keys() == parts.tensors.keys()
    assert all(torch.equal(whole.tensors[name], parts.tensors[name]) for name in whole.tensors)
    own = {"seconds": None, "remembered": None}  # its time, and the images' folder by its absolute name
    assert whole.record | own == parts.record | own
    assert json.loads((run / "checkpoint-00000012" / "state.json").read_text())["version"] == 2


def test_the_length_of_a_wsd_run_may_be_changed_and_changes_nothing_else(folder, tmp_path, lines):
    short, long = (training(folder, tmp_path / name, schedule="wsd", steps=n) for name, n in (("a", 6), ("b", 9)))
    assert list(train(short))[-1].finished
    rates = [p.lr for p in train(resumed(tmp_path / "a", "steps", steps=9))]
    assert rates == pytest.approx([1e-3 * step / recipe.WARM_UP for step in (7, 8, 9)])
    list(train(long))
    one, other = (checkpoint.load_latest(tmp_path / name) for name in "ab")
    assert one.step == other.step == 9
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    # 0.999 of what the averages were stays in each step, however short the run.
    start = checkpoint.read(tmp_path / "b" / "checkpoint-00000005").tensors["ema.head.weight"]
    end = other.tensors["ema.head.weight"]
    assert (end - start).abs().max() < 5e-3 * (other.tensors["model.head.weight"] - start).abs().max()
    assert list(train(resumed(tmp_path / "a"))) == [] and "9 steps already" in lines[-1]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_decay_is_a_run_of_its_own_and_leaves_the_other_alone(folder, tmp_path, schedule, lines):
    run = stopped(training(folder, tmp_path / "run", schedule=schedule, steps=20), 8)
    before = hashes(run)
    done = list(train(decay(run, 6)))
    out = tmp_path / "run-decay-8"
    peak = recipe.learning_rate(8, 20, 1e-3, schedule)
    assert [p.lr for p in done] == pytest.approx([peak * left / 6 for left in (6, 5, 4, 3, 2, 1)])
    assert [(p.step, p.steps, p.folder) for p in done] == [(step, 14, out) for step in range(9, 15)]
    assert done[-1].finished and any(f"from step 8 of {run}" in line for line in lines)
    assert hashes(run) == before
    for name in "last", "best":
        assert load_model(out / f"{name}.safetensors").config.features == 8
    assert read_info(out / "last.safetensors")["training"]["decay_from"] == 8
    assert list(train(resumed(out))) == []
    with pytest.raises(TrainError, match="learning rate is 0 already"):
        list(train(decay(out, 5)))
    # The other goes on as it would have.
    assert [p.step for p in train(resumed(run))] == list(range(9, 21))


def test_a_decay_averages_and_judges_its_own_steps_alone(folder, tmp_path, monkeypatch):
    """A thousand steps' memory would publish weights from before the rate fell; the best of those was not decayed."""
    scores = iter([99.0, 20.0, 30.0])
    monkeypatch.setattr("edsr.training.validation.validate", lambda *_: (next(scores), {}))
    run = stopped(training(folder, tmp_path / "run", schedule="wsd"), 8)
    list(train(decay(run, 6)))
    out = tmp_path / "run-decay-8"
    assert read_info(out / "best.safetensors")["training"]["steps"] == 14
    end = checkpoint.load_latest(out).tensors
    for name in end:
        if name.startswith("model."):  # a twentieth of six steps
            assert torch.equal(end[name], end[name.replace("model.", "ema.", 1)])


def test_a_decay_begins_with_the_state_of_the_run(folder, tmp_path):
    run = stopped(training(folder, tmp_path / "run", schedule="wsd"), 8)
    stopped(decay(run, 4), 9)
    old, new = (checkpoint.read(where / "checkpoint-00000008") for where in (run, tmp_path / "run-decay-8"))
    assert all(torch.equal(old.tensors[name], new.tensors[name]) for name in old.tensors)


@pytest.mark.parametrize("again", ["the same command", "its own name"])
def test_a_decay_that_was_stopped_goes_on(folder, tmp_path, again):
    run = stopped(training(folder, tmp_path / "run", schedule="wsd"), 8)
    list(train(decay(run, 6, out=str(tmp_path / "whole"))))
    stopped(decay(run, 6), 11)
    out = tmp_path / "run-decay-8"
    rest = list(train(decay(run, 6) if again == "the same command" else resumed(out)))
    assert [p.step for p in rest] == [12, 13, 14]
    whole, parts = (checkpoint.load_latest(where) for where in (tmp_path / "whole", out))
    assert all(torch.equal(whole.tensors[name], parts.tensors[name]) for name in whole.tensors)
    with pytest.raises(TrainError, match="steps=14, not 15"):  # wsd as it was, but its end is fixed now
        list(train(resumed(out, "steps", steps=15)))


def test_a_decay_takes_no_folder_that_is_another_s(folder, tmp_path):
    run = stopped(training(folder, tmp_path / "run", schedule="wsd"), 8)
    stopped(decay(run, 6), 10)
    other = stopped(training(folder, tmp_path / "other"), 2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    before = hashes(tmp_path)
    for options, says in [
        (decay(run, 7), "holds another run; continue that with out=.* resume=True"),
        (decay(run, 6, out=str(other)), "holds another run"),
        (decay(run, 6, out=str(run)), "holds another run"),
        (decay(run, 6, out=str(tmp_path / "full")), "exists; choose another out"),
        (decay(run, 0, out=str(tmp_path / "new")), "decay must be 1 or more"),
        (decay(run, AUTO, out=str(tmp_path / "new")), "decay='auto' .* add minutes"),
        (decay(tmp_path / "nowhere", 6), "holds no run"),
    ]:
        with pytest.raises(TrainError, match=says) as caught:
            list(train(options))
        assert "\n" not in str(caught.value)
    assert hashes(tmp_path) == before and not (tmp_path / "new").exists()


def test_a_decay_killed_before_its_first_checkpoint_begins_anew(folder, tmp_path):
    run = stopped(training(folder, tmp_path / "run", schedule="wsd"), 8)
    (tmp_path / "run-decay-8" / ".checkpoint-00000008.part").mkdir(parents=True)
    assert list(train(decay(run, 3)))[-1].step == 11


@pytest.mark.slow
def test_a_decay_as_long_as_there_is_time(folder, tmp_path, monkeypatch):
    from tests.training.test_step_budget import Clock

    run = stopped(training(folder, tmp_path / "run", schedule="wsd"), 8)
    before = hashes(run)
    clock = Clock(monkeypatch, 1.0)
    done = list(train(decay(run, AUTO, minutes=1), clock=clock))
    assert 20 < len(done) < 50 and done[0].step == 9 and done[-1].finished and clock.now < 60
    list(train(decay(run, len(done), out=str(tmp_path / "given"))))
    auto, given = (checkpoint.load_latest(tmp_path / name) for name in ("run-decay-8", "given"))
    assert all(torch.equal(auto.tensors[name], given.tensors[name]) for name in given.tensors)
    assert hashes(run) == before
