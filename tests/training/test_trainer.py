import contextlib
import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from edsr.data import PairedImages, dataset
from edsr.errors import BackendError, CheckpointError, DataError, TrainError, WeightsError
from edsr.images.resize import matlab_downscale
from edsr.models.edsr import EDSRConfig
from edsr.training.config import GRAD_CLIP_NORM
from edsr.training.trainer import train
from edsr.training.validation import validate
from edsr.weights import load_model, read_info, save_model
from tests.conftest import make_image, network
from tests.conftest import training as options
from tests.support.repeating import repeating

TINY = EDSRConfig(blocks=1, features=8)

pytestmark = pytest.mark.usefixtures("tiny")


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
    kept = {"last.safetensors", "best.safetensors", "checkpoint-00000055", "checkpoint-00000060", "metrics.jsonl"}
    kept |= {"config.toml"}
    assert {p.name for p in out.iterdir()} - {"plot.png", "tensorboard"} == kept
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [20, 40, 50, 60]
    assert [line["psnr"] for line in logged if "psnr" in line] == [p.psnr for p in steps if p.psnr is not None]
    assert logged[0]["loss"] == pytest.approx(np.mean([p.loss for p in steps[:20]]))


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


def test_other_scales_start_from_the_body_of_x2(folder, tmp_path, monkeypatch, lines):
    monkeypatch.setattr("edsr.weights.files.FOLDER", tmp_path)
    list(train(options(folder, tmp_path / "scratch", scale=3, steps=1, lr=1e-30)))
    assert any("random" in line for line in lines)
    m = network(2, 1, 8).float()
    save_model(m, tmp_path / "edsr-baseline-x2.safetensors")
    for scale in 3, 4:
        list(train(options(folder, tmp_path / f"x{scale}", scale=scale, steps=1, lr=1e-30)))
        started = load_model(tmp_path / f"x{scale}" / "last.safetensors")
        assert torch.equal(started.body[0].conv1.weight, m.body[0].conv1.weight)
        assert torch.equal(started.head.weight, m.head.weight)
        assert started.config.scale == scale
    assert "starting from edsr-baseline x2" in " ".join(lines)


def test_a_packaged_name_means_its_weights_of_that_scale(folder, tmp_path, monkeypatch, lines):
    monkeypatch.setattr("edsr.weights.files.FOLDER", tmp_path)
    packaged = {scale: network(scale, 1, 8).float() for scale in (2, 3)}
    for scale, m in packaged.items():
        save_model(m, tmp_path / f"edsr-baseline-x{scale}.safetensors")
    for scale, source in (2, 2), (3, 3), (4, 2):
        one = options(folder, tmp_path / f"x{scale}", scale=scale, steps=1, lr=1e-30, init="edsr-baseline")
        list(train(one))
        assert f"starting from edsr-baseline x{source}" in " ".join(lines)
        started = load_model(tmp_path / f"x{scale}" / "last.safetensors")
        assert torch.equal(started.head.weight, packaged[source].head.weight)


def test_validation_is_psnr_of_rounded_luma_alone(tmp_path, monkeypatch):
    m = network(2).float()
    image = make_image(40, 40)
    Image.fromarray(image).save(tmp_path / "a.png")
    from edsr.evaluation.metrics import score
    from edsr.inference.upscaler import Upscaler

    want = score(Upscaler(m, device="cpu")(matlab_downscale(image, 2)), image, 2)[0]
    monkeypatch.setattr(
        "edsr.evaluation.metrics.ssim", lambda a, b: pytest.fail("SSIM takes ten times as long, and is not asked for")
    )
    psnr, samples = validate(m, dataset.load_dataset([tmp_path / "a.png"], 2, 1)[0], 2)
    assert psnr == pytest.approx(want, abs=1e-3)
    (sample,) = samples.values()
    assert sample.shape == (40, 120, 3) and np.array_equal(sample[:, 80:], image)


def icons(where, *sides):
    where.mkdir()
    for side in sides:
        Image.fromarray(make_image(side, side)).save(where / f"{side}.png")
    return str(where)


def test_validation_images_too_small_to_be_scored_are_left_out(folder, tmp_path, lines):
    val = icons(tmp_path / "icons", 4, 5, 6, 40)
    steps = train(options(folder, tmp_path / "run", steps=5, val=val))
    next(steps)
    assert "2 of 4 validation images smaller than 6 x 6 pixels: left out" in lines
    assert np.isfinite([p.psnr for p in steps if p.psnr is not None]).all()
    only = icons(tmp_path / "only", 4)
    with pytest.raises(DataError, match="only: no image of 6 x 6 pixels or more that is not of one color; give"):
        list(train(options(folder, tmp_path / "none", val=only)))
    assert not (tmp_path / "none").exists()
    # Held out of images that are small themselves.
    list(train(options(icons(tmp_path / "tiny", 4, 5), tmp_path / "small", steps=2, patch=2)))
    assert "images      1, 1.6e-05 megapixels" in lines and "validation  none" in lines


def test_validation_images_of_one_color_are_left_out(folder, tmp_path, lines):
    """Their PSNR is infinite as soon as they come out right, and so was the mean: no later weights were better."""
    val = icons(tmp_path / "val", 40)
    Image.fromarray(np.full((40, 40, 3), 99, np.uint8)).save(tmp_path / "val" / "flat.png")
    list(train(options(folder, tmp_path / "run", steps=5, val=val)))
    assert "1 of 2 validation images of one color, or one luma: left out" in lines
    (tmp_path / "val" / "40.png").unlink()
    with pytest.raises(DataError, match="that is not of one color; give another val"):
        list(train(options(folder, tmp_path / "none", val=val)))


def test_an_exact_validation_image_is_not_in_the_mean(tmp_path, lines):
    image = make_image(40, 40)
    exact = np.repeat(np.repeat(image[:20, :20], 2, 0), 2, 1)  # what the network below makes of its reduction
    pairs = [(image[:20, :20], exact), (image[:20, :20], image)]
    m = repeating()
    alone, _ = validate(m, PairedImages.from_pairs(pairs[1:], 2), 2)
    both, _ = validate(m, PairedImages.from_pairs(pairs, 2), 2)
    assert both == alone < np.inf and "1 of 2 validation images come out exact" in lines[-1]
    assert validate(m, PairedImages.from_pairs(pairs[:1], 2), 2)[0] == np.inf


def test_a_gradient_is_clipped_and_a_network_given(folder, tmp_path):
    network = EDSRConfig(blocks=2, features=4)
    ends = {}
    for name, more in ("usual", {}), ("small", {"clip": 1e-9}), ("none", {"clip": float("inf")}):
        list(train(options(folder, tmp_path / name, steps=3, network=network, **more)))
        model = load_model(tmp_path / name / "last.safetensors")
        assert model.config == network
        ends[name] = model.head.weight
    # Gradients of these images are small enough for the usual clip.
    assert torch.equal(ends["usual"], ends["none"]) and not torch.equal(ends["small"], ends["none"])


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"model": "srmd"}, WeightsError, "unknown model"),
        ({"steps": 0}, TrainError, "steps must"),
        ({"batch": 0}, TrainError, "batch must"),
        ({"save_every": 0}, TrainError, "save_every must"),
        ({"loss": "ssim"}, TrainError, "loss must be l1 or l2 or charbonnier"),
        ({"precision": "fp8"}, TrainError, "precision must be auto or fp32 or bf16"),
        ({"schedule": "none"}, TrainError, "schedule must"),
        ({"patch": 400}, DataError, "no image left"),
        ({"resume": True}, TrainError, "no run to resume"),
        ({"init": "nowhere.safetensors"}, WeightsError, "nowhere.safetensors"),
        ({"backend": "triton"}, BackendError, "backend='torch'"),
    ],
)
def test_misuse_is_told_in_one_line(folder, tmp_path, more, error, says):
    with pytest.raises(error, match=says) as caught:
        list(train(options(folder, tmp_path / "run", **more)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten_nor_mixed(folder, tmp_path):
    list(train(options(folder, tmp_path / "run")))
    with pytest.raises(TrainError, match="holds a run already"):
        list(train(options(folder, tmp_path / "run")))
    with pytest.raises(TrainError, match="batch=2, not 3"):
        list(train(options(folder, tmp_path / "run", resume=True, batch=3)))
    with pytest.raises(TrainError, match="lies in"):
        list(train(options(folder, folder / "run")))
    with pytest.raises(TrainError, match="images is a folder of images to train on; choose another out"):
        list(train(options(folder, folder / "." / ".." / folder.name)))
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match="is a file"):
        list(train(options(folder, tmp_path / "file")))


def test_other_images_are_noticed(folder, tmp_path, lines):
    list(train(options(folder, tmp_path / "run")))
    Image.fromarray(make_image(50, 50, seed=9)).save(folder / "new.png")
    list(train(options(folder, tmp_path / "run", resume=True)))
    assert any("not those this run began with" in line for line in lines)


@pytest.mark.parametrize("stopper", ["minutes", "stopping"])
def test_a_run_stops_when_told_and_can_go_on(folder, tmp_path, stopper):
    out, done = tmp_path / "run", []
    if stopper == "minutes":
        done = list(train(options(folder, out, minutes=1e-9)))
        assert [p.step for p in done] == [1]  # one is always taken
    else:
        for progress in train(options(folder, out), stopping=lambda: len(done) == 7):
            done.append(progress)
        assert [p.step for p in done] == list(range(1, 8)) and not done[-1].finished
        assert load_model(out / "last.safetensors").config == TINY
    rest = list(train(options(folder, out, resume=True)))
    assert [p.step for p in rest] == list(range(len(done) + 1, 13)) and rest[-1].finished
    assert list(train(options(folder, out, resume=True))) == []


def test_a_run_astray_goes_back_with_half_the_learning_rate(folder, tmp_path, monkeypatch, lines):
    """A loss that is wrong for a while: as if a weight had overflowed at step 9."""
    from edsr.training.step import TrainStep

    honest, calls = TrainStep.run, []

    def run(self, first, rates):
        calls.append((first, rates[0]))
        losses = honest(self, first, rates)
        return [float("nan")] if first == 8 and len(calls) < 12 else losses

    monkeypatch.setattr(TrainStep, "run", run)
    done = list(train(options(folder, tmp_path / "run")))
    assert [step for step, _ in calls] == [*range(9), *range(12)]  # back to the step 0 checkpoint
    rates = [rate for _, rate in calls]
    assert rates[9:17] == pytest.approx([rate / 2 for rate in rates[:8]])
    assert sum("back to step 0, with 0.5 of the learning rate" in line for line in lines) == 1
    assert done[-1].finished


def test_a_run_astray_for_good_is_given_up_and_keeps_a_checkpoint(folder, tmp_path, lines):
    with pytest.raises(TrainError, match="smaller lr") as caught:
        list(train(options(folder, tmp_path / "run", lr=1e30)))
    assert "\n" not in str(caught.value)
    assert sum("back to step" in line for line in lines) == 3
    assert (tmp_path / "run" / "checkpoint-00000000").is_dir()


def test_a_weight_that_is_not_finite_is_never_saved(folder, tmp_path, monkeypatch):
    from edsr.training.step import TrainStep

    honest = TrainStep.run

    def run(self, first, rates):
        losses = honest(self, first, rates)
        if first == 4:
            next(self.model.parameters()).data[0] = float("nan")
        return losses

    monkeypatch.setattr(TrainStep, "run", run)
    with pytest.raises(TrainError, match="a weight is not finite"):
        list(train(options(folder, tmp_path / "run")))
    assert [p.name for p in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-00000000"]


def test_weights_that_cannot_be_written_end_the_run_with_a_line(folder, tmp_path, monkeypatch):
    def full(*_, **__):
        raise WeightsError("last.safetensors: cannot be written: No space left on device")

    steps = train(options(folder, tmp_path / "run"))
    for progress in steps:
        if progress.step == 6:
            break
    with monkeypatch.context() as patch:
        patch.setattr("edsr.training.publishing.save_model", full)
        with pytest.raises(CheckpointError, match=r"No space left on device; step 5 is safe.*resume=True"):
            list(steps)
    assert next(iter(train(options(folder, tmp_path / "run", resume=True)))).step == 6


def test_a_full_disk_ends_the_run_with_a_line(folder, tmp_path, monkeypatch):
    import errno
    import os

    steps = train(options(folder, tmp_path / "run"))
    for progress in steps:
        if progress.step == 6:
            break

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"No space left on device.*step 5 is safe.*resume=True"):
            list(steps)
    assert next(iter(train(options(folder, tmp_path / "run", resume=True)))).step == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_adam_on_the_mean_loss_and_the_average_follows(folder, dtype):
    """Against the plain loop, written out; in bf16 the network works on rounded weights, Adam on the true ones."""
    import copy

    from edsr.data.patches import PatchLoader
    from edsr.devices import ProcessGroup
    from edsr.kernels import reference
    from edsr.models.edsr import EDSR
    from edsr.training.step import TrainStep

    images, _ = dataset.load_dataset([folder], 2, 8)
    loader = PatchLoader(images, 8, 4, 0, torch.device("cpu"), 3)
    model = EDSR(TINY)
    plain, average = copy.deepcopy(model), copy.deepcopy(model)
    step = TrainStep(model, loader, ProcessGroup("cpu"), "l1", 0.75, dtype, reference, True)
    rates = [1e-3, 2e-3, 5e-4]
    losses = step.run(0, rates)
    adam = torch.optim.Adam(plain.parameters())
    other = PatchLoader(images, 8, 4, 0, torch.device("cpu"), 3)
    other.load(0, 3)
    for i, rate in enumerate(rates):
        low, high = other.batch(torch.tensor([i]))
        worker = copy.deepcopy(plain).to(dtype)
        loss = (worker(low) - high).abs().mean()
        loss.backward()
        assert losses[i] == pytest.approx(loss.item(), rel=1e-5)
        for p, q in zip(plain.parameters(), worker.parameters(), strict=True):
            p.grad = q.grad.float()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), GRAD_CLIP_NORM)
        adam.param_groups[0]["lr"] = rate
        adam.step()
        for p, q in zip(average.parameters(), plain.parameters(), strict=True):
            p.data.lerp_(q.data, 0.25)
    for got, want in zip((model, step.ema), (plain, average), strict=True):
        for p, q in zip(got.parameters(), want.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.slow
def test_unless_told_a_run_looks_at_and_saves_itself_by_the_clock(folder, tmp_path, monkeypatch):
    from edsr.training import checkpoint
    from tests.training.test_step_budget import Clock

    saved, write = [], checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda run, c: (saved.append(c.step), write(run, c)))
    by_clock = {"val_every": None, "save_every": None, "steps": 130}
    done = list(train(options(folder, tmp_path / "run", **by_clock), clock=Clock(monkeypatch, 1.0)))
    assert [p.step for p in done if p.psnr is not None] == [50, 100, 130]
    assert saved == [0, 20, 50, 80, 110, 130]  # the first step takes ten seconds more
    saved.clear()
    fixed = options(folder, tmp_path / "fixed", deterministic=True, **by_clock)
    done = list(train(fixed, clock=Clock(monkeypatch, 1000.0)))
    assert [p.step for p in done if p.psnr is not None] == [130] and saved == [0, 130]
    assert fixed.interval(None) == 1000 and fixed.interval(7) == 7


def test_the_best_of_a_killed_run_is_not_replaced_by_worse(folder, tmp_path, monkeypatch):
    """Looked at by the clock, it may never be at that step again."""
    scores = iter([35.0, 34.0, 36.0, 33.0])
    monkeypatch.setattr("edsr.training.validation.validate", lambda *_: (next(scores), {}))
    by_clock = {"val_every": None, "save_every": None, "steps": 120}
    run = train(options(folder, tmp_path / "run", **by_clock), clock=lambda: 0.0)
    with pytest.raises(ZeroDivisionError):
        for progress in run:
            if progress.step == 60:
                run.throw(ZeroDivisionError())  # nothing is saved on the way out
    best = tmp_path / "run" / "best.safetensors"
    assert read_info(best)["training"]["steps"] == 50
    seen = {}
    for progress in train(options(folder, tmp_path / "run", resume=True, **by_clock), clock=lambda: 0.0):
        seen[progress.step] = read_info(best)["training"]["validation_psnr"]
    assert min(seen) == 1 and (seen[50], seen[99], seen[100]) == (35.0, 35.0, 36.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_found_by_asking_once(folder, value, monkeypatch):
    from edsr.data.patches import PatchLoader
    from edsr.devices import ProcessGroup
    from edsr.kernels import reference
    from edsr.models.edsr import EDSR
    from edsr.training.step import TrainStep

    loader = PatchLoader(dataset.load_dataset([folder], 2, 8)[0], 8, 4, 0, "cpu", 3)
    step = TrainStep(EDSR(TINY), loader, ProcessGroup("cpu"), "l1", 0.75, torch.float32, reference, True)
    asked = []
    honest = torch.Tensor.__bool__
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: (asked.append(1), honest(self))[1])
    assert step.is_finite() and len(asked) == 1
    for name, tensor in step.tensors().items():
        before = tensor.clone()
        tensor.view(-1)[-1] = value
        assert not step.is_finite(), name
        tensor.copy_(before)
    assert step.is_finite()
