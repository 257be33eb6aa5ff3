"""`--model auto` and `--strength`: which image gets which network, what is said of it, what is kept ready."""

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from edsr import cli
from edsr.batch import runner
from edsr.batch.jobs import Job
from edsr.batch.pool import MIXTURES, UpscalerPool
from edsr.batch.runner import UpscaleOptions, upscale_files
from edsr.images.compression import LossyCompression
from edsr.images.reader import read_image
from edsr.inference.upscaler import Upscaler
from edsr.progress import Silent
from edsr.weights import files as weights
from edsr.weights import load_model, save_model, selection
from tests.conftest import ROOT, make_image, network
from tests.support.image_files import names, pillow
from tests.support.processes import run as run_process

SILENT = Silent()


def put(folder, *wanted):
    """Small networks in the place of packaged ones."""
    folder.mkdir(exist_ok=True)
    for name in wanted:
        for scale in 2, 3:
            save_model(network(scale), folder / f"{name}-x{scale}.safetensors", dtype=torch.float32)


PACKAGED = selection.TABLE
POINTS = [[40, 1.0], [60, 1.0], [75, 0.9], [85, 0.65], [95, 0.25], [98, 0.1], [100, 0.0]]


@pytest.fixture(autouse=True)
def points(tmp_path, monkeypatch):
    """A table that stays as it is when the packaged one is fitted anew."""
    (tmp_path / ".points.json").write_text(json.dumps(dict.fromkeys("234", POINTS)))
    monkeypatch.setattr(selection, "TABLE", tmp_path / ".points.json")
    selection.warn_not_packaged.cache_clear()


@pytest.fixture
def without(tmp_path, monkeypatch):
    """A folder with images; edsr-baseline of two scales, and no edsr-photo; the current folder."""
    put(tmp_path / "packaged", "edsr-baseline")
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "packaged")
    monkeypatch.chdir(tmp_path)
    for name in "png", "tif", "jpg", "webp":
        pillow(make_image(24, 30)).save(f"a.{name}", **({"quality": 75} if name in ("jpg", "webp") else {}))
    return tmp_path


@pytest.fixture
def home(without):
    """The same with edsr-photo."""
    put(without / "packaged", "edsr-photo")
    return without


@pytest.fixture
def run(capsys):
    """Runs a command; gives exit code, standard output, standard error."""

    def call(*arguments):
        code = cli.main([*map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def jpeg(path, quality, seed=0):
    pillow(make_image(20, 26, seed=seed)).save(path, quality=quality)


def by(model, path, scale=2):
    return Upscaler(load_model(model, scale), "cpu")(read_image(path))


# --- the table


def test_the_packaged_table_has_the_packaged_scales():
    assert sorted(json.loads(PACKAGED.read_text())) == sorted(map(str, weights.list_packaged()[selection.CLEAN]))


@pytest.mark.parametrize("scale", weights.list_packaged()[selection.CLEAN])
def test_the_packaged_table(scale, monkeypatch):
    monkeypatch.setattr(selection, "TABLE", PACKAGED)
    points = json.loads(PACKAGED.read_text())[str(scale)]
    qualities, shares = zip(*points, strict=True)
    assert list(qualities) == sorted(set(qualities)) and all(0 <= share <= 1 for share in shares)
    for quality in range(1, 101):
        share = selection.share_for(quality, scale)
        assert 0 <= share <= 1 and round(share * 20, 9) == round(share * 20)


def test_shares_are_linear_between_points_and_constant_beyond():
    table = {"2": [[40, 1.0], [80, 0.6], [100, 0.0]]}
    for quality, share in (1, 1.0), (40, 1.0), (60, 0.8), (70, 0.7), (72, 0.7), (90, 0.3), (99, 0.05), (100, 0.0):
        assert selection.share_for(quality, 2, table) == share
    assert selection.share_for(40, 3, table) == 0


def test_choices():
    table = {"2": [[40, 1.0], [80, 0.6], [100, 0.0]]}
    mixed = "edsr-baseline:0.4+edsr-photo:0.6"
    for found, model, message in (
        (None, "edsr-baseline", "edsr-baseline"),
        (LossyCompression("JPEG", 80, True), mixed, "JPEG quality 80: edsr-photo 0.6"),
        (LossyCompression("AVIF", 80, False), mixed, "AVIF, quality taken for 75: edsr-photo 0.6"),
        (LossyCompression("WebP", 20, True), "edsr-photo", "WebP quality 20: edsr-photo 1"),
        (LossyCompression("JPEG", 100, True), "edsr-baseline", "JPEG quality 100: edsr-baseline"),
    ):
        assert selection.choose_by_quality(found, 2, table) == (model, message)


# --- upscale


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_lossless_images_are_as_before(home, run, name):
    for model in [], ["--model", "edsr-baseline"]:
        code, out, err = run("upscale", name, "-o", f"out{len(model)}.png", *model)
        assert code == 0 and out.rstrip().endswith(" s, edsr-baseline") and err == ""
    assert (home / "out0.png").read_bytes() == (home / "out2.png").read_bytes()
    np.testing.assert_array_equal(read_image("out0.png"), by("edsr-baseline", name))


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_compressed_images_get_a_mixture(home, run, name):
    found = selection.choose_by_file(home / name, 2)
    code, out, err = run("upscale", name, "-o", "out.png")
    assert code == 0 and out.rstrip().endswith(f" s, {found.description}") and err == ""
    assert "quality 7" in found.description and ": edsr-photo 0." in found.description
    np.testing.assert_array_equal(read_image("out.png"), by(found.model, name))
    code, out, _ = run("upscale", name, "-o", "out.png", "--overwrite", "--json")
    assert json.loads(out)["model"] == found.description


def test_a_jpeg_that_does_not_tell(home, run, monkeypatch):
    monkeypatch.setattr("edsr.images.compression.jpeg_quality", lambda file: None)
    code, out, err = run("upscale", "a.jpg")
    assert code == 0 and "JPEG, quality taken for 75: edsr-photo 0.9" in out and err == ""


def test_without_edsr_photo_one_warning_is_shown(without, run):
    jpeg("b.jpg", 40)
    code, out, err = run("upscale", "a.png", "a.jpg", "b.jpg", "a.webp", "-o", "out/")
    assert code == 0 and out.count(", edsr-baseline\n") == 4
    assert err.count("edsr-photo") == 1 and "edsr-photo x2 is not packaged" in err
    np.testing.assert_array_equal(read_image("out/b_x2.png"), by("edsr-baseline", "b.jpg"))
    assert run("upscale", "a.png", "-o", "b.png")[2] == ""  # of which nothing would be different
    selection.warn_not_packaged.cache_clear()
    assert run("upscale", "a.jpg", "--quiet") == (0, "", "")
    code, _, err = run("upscale", "a.jpg", "--strength", "0.5")
    assert code == 1 and "edsr-photo x2 is not packaged" in err and err.count("\n") == 1
    assert run("upscale", "a.jpg", "--strength", "0", "--overwrite")[0] == 0


def test_a_scale_without_edsr_photo(home, run):
    (home / "packaged" / "edsr-photo-x3.safetensors").unlink()
    code, out, err = run("upscale", "a.jpg", "--outscale", "2.5")
    assert code == 0 and out.endswith(", edsr-baseline\n") and "edsr-photo x3" in err
    assert "edsr-photo 0.9" in run("upscale", "a.jpg", "--outscale", "2")[1]


def test_strength(home, run):
    for text, model, message in (
        ("0", "edsr-baseline", "edsr-baseline"),
        ("0.3", "edsr-baseline:0.7+edsr-photo:0.3", "edsr-photo 0.3"),
        ("1", "edsr-photo", "edsr-photo 1"),
    ):
        for name in "a.png", "a.jpg":  # whatever the file says
            code, out, err = run("upscale", name, "-o", "out.png", "--overwrite", "--strength", text)
            assert code == 0 and out.endswith(f", {message}\n") and err == ""
            np.testing.assert_array_equal(read_image("out.png"), by(model, name))


@pytest.mark.parametrize("command", ["upscale", "compare"])
def test_strength_misused(home, run, command):
    code, out, err = run(command, "a.png", "--strength", "0.5", "--model", "edsr-baseline")
    assert code == 2 and "--strength" in err and err.count("\n") == 1 and out == ""
    assert run(command, "a.png", "--strength", "0.5", "--model", "auto")[0] == 0
    for text in "-0.1", "1.1", "nan", "much":
        with pytest.raises(SystemExit) as caught:
            run(command, "a.png", "--strength", text)
        assert caught.value.code == 2
    with pytest.raises(SystemExit):
        run("evaluate", "--hr", "a", "--strength", "0.5")


def test_a_image_is_cleaned_at_its_own_size(home, run):
    code, out, err = run("upscale", "a.jpg", "--outscale", "1", "--strength", "0.8")
    assert code == 0 and out.startswith("a_x1.png  30 x 24") and out.endswith(", edsr-photo 0.8\n") and err == ""
    got, large = read_image("a_x1.png").astype(int), by("edsr-baseline:0.2+edsr-photo:0.8", "a.jpg")
    want = np.asarray(Image.fromarray(large).resize((30, 24), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(got - want).max() <= 4 and np.abs(got - want).mean() < 0.5  # two Lanczos reductions differ a little
    assert run("upscale", "a.jpg", "--outscale", "1", "-o", "b.png")[0] == 0


def test_sizes_take_mixtures_of_the_next_larger_network(home, run):
    for wish, scale in (("1.5", 2), ("2.5", 3)):
        assert run("upscale", "a.jpg", "--outscale", wish, "-o", "out.png", "--overwrite")[0] == 0
        model = selection.choose_by_file(home / "a.jpg", scale).model
        assert ":" in model
        networks = UpscalerPool("auto", None, ["cpu"], expected_scale=float(wish))
        job = Job(home / "a.jpg", home / "again.png")
        (outcome,) = upscale_files(
            [job], networks, UpscaleOptions(runner.OutputSize(float(wish)), overwrite=True), SILENT
        )
        assert outcome.error is None and networks.loaded == [("edsr-baseline", scale), (model, scale)]
        np.testing.assert_array_equal(read_image("again.png"), read_image("out.png"))
    code, _, err = run("upscale", "a.jpg", "--outscale", "3.5")
    assert code == 2 and "more than 3 times" in err


def test_mixtures_by_hand_have_the_scales_of_their_parts(home, run):
    mixed = "edsr-baseline:1+edsr-photo:1"
    code, out, _ = run("upscale", "a.png", "--width", "80", "--model", mixed)
    assert code == 0 and out.endswith(f", {mixed}\n")
    save_model(load_model("edsr-photo", 3), "mine.safetensors")
    assert UpscalerPool("edsr-baseline:1+mine.safetensors:1", None, ["cpu"]).scales == (3,)
    code, _, err = run("upscale", "a.png", "--model", "edsr-baseline:1+edsr-photo:-1", "-o", "b.png")
    assert code == 1 and "sum to 0" in err and err.count("\n") == 1


def test_standard_input(home):
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from pathlib import Path\n"
    code += "from edsr.weights import files, selection; selection.TABLE = Path('.points.json')\n"
    code += "files.FOLDER = Path('packaged'); import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(ROOT), "upscale", "-"]
    done = run_process(command, input=(home / "a.jpg").read_bytes(), capture_output=True)
    found = selection.choose_by_file(home / "a.jpg", 2)
    assert done.returncode == 0 and done.stderr.decode().rstrip().endswith(found.description)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(done.stdout))), by(found.model, "a.jpg"))


# --- batches


@pytest.fixture
def batch(home):
    """Twelve images of as many qualities, each mixture twice or more."""
    (home / "in").mkdir()
    (home / "out").mkdir()
    for i, quality in enumerate([100, 97, 95, 92, 90, 88, 85, 80, 75, 60, 40, 10]):
        jpeg(home / "in" / f"{i:02}.jpg", quality, seed=i)
    return [Job(path, home / "out" / f"{path.stem}.png") for path in sorted((home / "in").iterdir())]


@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cpu"]])
@pytest.mark.parametrize("at_once", [1, 3])
def test_a_batch_of_many_qualities_keeps_few_mixtures(batch, monkeypatch, devices, at_once):
    monkeypatch.setitem(runner.FILES_AT_ONCE, "cpu", at_once)
    networks = UpscalerPool("auto", None, devices)
    outcomes = []
    for outcome in upscale_files(batch, networks, UpscaleOptions(), SILENT):
        outcomes.append(outcome)
        assert len(networks.loaded) <= 1 + MIXTURES
    assert len(outcomes) == 12 and not any(outcome.error for outcome in outcomes)
    assert len({outcome.model.split(": ")[1] for outcome in outcomes}) > MIXTURES
    for job in batch:
        np.testing.assert_array_equal(
            read_image(job.output), by(selection.choose_by_file(job.source, 2).model, job.source)
        )
    again = list(upscale_files(batch, networks, UpscaleOptions(skip_existing=True), SILENT))
    assert all(outcome.skipped and outcome.model is None for outcome in again)


def test_mixtures_used_last_are_kept(home):
    networks = UpscalerPool("auto", None, ["cpu", "cpu"])
    models = [selection.choose_by_strength(share).model for share in (0.1, 0.2, 0.3, 0.4, 0.5)]
    first = networks.upscaler(0, 2, models[0])
    for model in models[:4]:
        networks.on_all_devices(2, model)
    assert networks.upscaler(0, 2, models[0]) is first
    networks.upscaler(0, 2, models[4])
    kept = {model for model, _ in networks.loaded}
    assert kept == {"edsr-baseline", models[0], *models[2:]} and networks.upscaler(0, 2, models[0]) is first
    assert networks.upscaler(1, 2, models[0]) is not first
    # Of several networks on a device one computes at a time.
    assert (
        networks.upscaler(0, 2).compute_lock is first.compute_lock
        and networks.upscaler(1, 2).compute_lock is not first.compute_lock
    )


def test_columns_of_a_compressed_image_are_shared(home):
    pillow(make_image(30, 200)).save("wide.jpg", quality=60)
    networks = UpscalerPool("auto", None, ["cpu", "cpu"])
    (outcome,) = upscale_files([Job(home / "wide.jpg", home / "wide.png")], networks, UpscaleOptions(), SILENT)
    assert outcome.device == "cpu,cpu" and outcome.model == "JPEG quality 60: edsr-photo 1"
    difference = np.abs(read_image("wide.png").astype(int) - by("edsr-photo", "wide.jpg"))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_failed_files_have_no_model(home, run):
    (home / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    code, out, _ = run("upscale", "broken.jpg", "none.jpg", "a.jpg", "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and sorted(record["model"] is None for record in records) == [False, True, True]


# --- the other commands


def test_compare(home, run, monkeypatch):
    made = []
    monkeypatch.setattr(
        "edsr.cli.network.make_upscaler", lambda _, model: made.append(model) or SimpleNamespace(scale=2)
    )
    monkeypatch.setattr("edsr.evaluation.compare", lambda *_: SimpleNamespace(scores={}, warnings=()))
    monkeypatch.setattr("edsr.evaluation.render_figure", lambda found: Image.new("RGB", (1, 1)))
    mixed = "edsr-baseline:0.1+edsr-photo:0.9"
    for arguments, model, message in (
        (["a.jpg"], mixed, "  JPEG quality 75: edsr-photo 0.9\n"),
        (["a.png"], "edsr-baseline", "  edsr-baseline\n"),
        (["--hr", "a.jpg"], "edsr-baseline", "  edsr-baseline\n"),  # the small image was never compressed
        (["a.png", "--strength", "0.9"], mixed, "  edsr-photo 0.9\n"),
        (["a.jpg", "--model", "edsr-baseline"], "edsr-baseline", ""),
    ):
        assert run("compare", *arguments, "--overwrite") == (0, f"a_compare.png\n{message}", "")
        assert made.pop() == model


def test_compare_for_real(home, run, without):
    code, out, err = run("compare", "a.jpg")
    assert code == 0 and "edsr-photo 0.9" in out and err == "" and "a_compare.png" in names(home)
    (home / "packaged" / "edsr-photo-x2.safetensors").unlink()
    code, out, err = run("compare", "a.jpg", "--overwrite")
    assert code == 0 and "edsr-baseline" in out and err.count("\n") == 1 and "not packaged" in err


def test_evaluate_stays_with_edsr_baseline(home, run):
    (home / "hr").mkdir()
    jpeg(home / "hr" / "a.jpg", 60)
    usual = run("evaluate", "--hr", "hr", "--json")
    assert usual[0] == 0 and run("evaluate", "--hr", "hr", "--json", "--model", "edsr-baseline") == usual
    code, _, err = run("evaluate", "--hr", "hr", "--model", "auto")
    assert code == 2 and "auto" in err and err.count("\n") == 1
    assert run("evaluate", "--hr", "hr", "--json", "--model", "edsr-photo:1+edsr-baseline:1")[0] == 0


def test_help_tells_of_strength(run, capsys):
    with pytest.raises(SystemExit):
        run("upscale", "--help")
    out = capsys.readouterr().out
    assert "--outscale 1 --strength" in out and "auto, the default" in " ".join(out.split())
