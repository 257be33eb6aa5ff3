import io
import json

import numpy as np
import pytest
from PIL import Image

from edsr import cli
from edsr.evaluation.comparison import compare
from edsr.evaluation.metrics import PROTOCOLS, psnr
from edsr.evaluation.results import short_names
from edsr.evaluation.scoring import FIELDS, evaluate, evaluate_all, mean_scores
from edsr.images import matlab_bicubic, matlab_downscale, matlab_round
from edsr.inference.upscaler import Upscaler
from edsr.weights import list_packaged, load_model, save_model
from tests.conftest import make_image, network
from tests.support.image_files import odd_tiff

BICUBIC = {  # PSNR on luma, as papers report it
    ("Set5", 2): 33.65,
    ("Set5", 3): 30.39,
    ("Set5", 4): 28.42,
    ("Set14", 2): 30.22,
    ("Set14", 3): 27.53,
    ("Set14", 4): 25.99,
}


@pytest.mark.parametrize("given_lr", [True, False])
@pytest.mark.parametrize(("name", "scale"), BICUBIC)
def test_bicubic_scores_what_papers_report(shared, name, scale, given_lr):
    folder = shared / "data/eval" / name
    up = Upscaler(network(scale, blocks=0, features=1), device="cpu")
    images = list(evaluate(up, folder / "HR", folder / f"LRx{scale}" if given_lr else None))
    assert len(images) == {"Set5": 5, "Set14": 14}[name]
    assert round(mean_scores(images)["bicubic_psnr"], 2) == BICUBIC[name, scale]


@pytest.mark.parametrize("variant", ["", "_stdtopology"])
def test_a_network_trained_by_others_scores_as_published(shared, variant):
    model = load_model(shared / f"weights/mlcommons_edsr_f64b5_x2{variant}.safetensors")
    images = list(evaluate(Upscaler(model, device="cpu"), shared / "data/eval/Set5/HR"))
    assert round(mean_scores(images)["psnr"], 1) == 37.6


@pytest.mark.parametrize("scale", list_packaged().get("edsr-baseline", ()))
def test_packaged_weights_beat_bicubic(shared, scale):
    up = Upscaler(load_model("edsr-baseline", scale), device="cpu")
    scores = mean_scores(list(evaluate(up, shared / "data/eval/Set5/HR")))
    assert scores["psnr"] > scores["bicubic_psnr"] + (3 if scale == 2 else 1)
    assert scores["ssim"] > scores["bicubic_ssim"]


@pytest.fixture
def folders(tmp_path):
    """Two originals and their reductions, one of them gray and of odd size."""
    for name in "hr", "lr":
        (tmp_path / name).mkdir()
    for name, image in ("a", make_image(43, 51)), ("b", make_image(41, 40, 1)[:, :, 0]):
        Image.fromarray(image).save(tmp_path / "hr" / f"{name}.png")
        Image.fromarray(matlab_downscale(image, 2)).save(
            tmp_path / "lr" / (f"{name}x2.png" if name == "a" else f"{name}.png")
        )
    return tmp_path


def test_reductions_made_and_given_score_the_same(folders):
    up = Upscaler(network(), device="cpu")
    made, given = list(evaluate(up, folders / "hr")), list(evaluate(up, folders / "hr", folders / "lr"))
    assert made == given
    assert [image["name"] for image in made] == ["a.png", "b.png"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_json_is_one_document(folders, capsys, protocol, tmp_path):
    save_model(network(), tmp_path / "m.safetensors")
    arguments = [
        "--hr",
        str(folders / "hr"),
        "--model",
        str(tmp_path / "m.safetensors"),
        "--protocol",
        protocol,
    ]
    assert cli.main(["evaluate", *arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    fields = {"psnr", "ssim", "bicubic_psnr", "bicubic_ssim"}
    how = {"model": arguments[3], "scale": 2, "protocol": protocol, "self_ensemble": False, "lr": None}
    assert how | {"hr": arguments[1]} == {key: document[key] for key in ("hr", *how)}
    assert set(document) == {"images", "failed", "mean", "complete", "hr", *how} and set(document["mean"]) == fields
    assert [set(image) for image in document["images"]] == [fields | {"name"}] * 2
    assert document["mean"]["psnr"] == pytest.approx(np.mean([image["psnr"] for image in document["images"]]))
    assert cli.main(["evaluate", *arguments]) == 0
    assert "mean of 2" in capsys.readouterr().out


def test_scores_that_are_not_finite_are_null_in_json(tmp_path, capsys):
    """Of a flat image bicubic misses nothing; where div2k leaves fewer than 11 pixels, there is no SSIM."""
    for name, image in ("flat", np.full((40, 40, 3), 99, np.uint8)), ("small", make_image(18, 30)):
        (tmp_path / name).mkdir()
        Image.fromarray(image).save(tmp_path / name / "a.png")
    save_model(network(), tmp_path / "m.safetensors")
    arguments = ["evaluate", "--model", str(tmp_path / "m.safetensors"), "--hr"]

    def refuse(constant):
        raise ValueError(constant)

    assert cli.main([*arguments, str(tmp_path / "flat"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out, parse_constant=refuse)
    for scores in document["images"][0], document["mean"]:
        assert scores["bicubic_psnr"] is None and scores["bicubic_ssim"] == pytest.approx(1)
    assert cli.main([*arguments, str(tmp_path / "flat")]) == 0
    assert capsys.readouterr().out.count("inf") == 2  # the image's and the mean
    assert cli.main([*arguments, str(tmp_path / "small"), "--protocol", "div2k", "--json"]) == 0
    document = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert document["mean"]["ssim"] is None and document["mean"]["psnr"] > 0


@pytest.fixture
def score(tmp_path, capsys):
    """Scores the folder `hr` by a small network; gives exit code, the document of --json, and standard error."""
    save_model(network(), tmp_path / "m.safetensors")

    def call(*options):
        command = ["evaluate", "--hr", str(tmp_path / "hr"), "--model", str(tmp_path / "m.safetensors"), "--json"]
        code = cli.main([*command, *map(str, options)])
        captured = capsys.readouterr()
        return code, json.loads(captured.out, parse_constant=pytest.fail), captured.err

    return call


def encode(kind, pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


NOISE = np.random.default_rng(0).integers(0, 256, (43, 51, 4), np.uint8)
UNSUITABLE = {
    "small.png": (encode("png", make_image(12, 12)), "too small to score"),
    "cut.png": (encode("png", NOISE[..., :3])[:3000], "damaged or cut off"),
    "empty.png": (b"", "empty"),
    "text.jpg": (b"this is no image", "is not a"),
    "transparent.png": (encode("png", NOISE), "is transparent in places"),
    "sixteen.png": (encode("png", NOISE[..., 0].astype(np.uint16) * 257), "16-bit"),
    "float.tif": (encode("tiff", NOISE[..., 0] / np.float32(255)), "floating-point"),
}


@pytest.mark.parametrize("name", UNSUITABLE)
def test_one_unsuitable_original_does_not_end_it(folders, score, capsys, name):
    content, says = UNSUITABLE[name]
    alone = score()
    assert alone[0] == 0 and alone[1]["failed"] == [] and alone[1]["complete"]
    place = folders / "hr" / name
    place.write_bytes(content)
    code, document, said = score()
    assert code == 1 and document["images"] == alone[1]["images"] and document["mean"] == alone[1]["mean"]
    assert [image["name"] for image in document["failed"]] == [name]
    assert says in document["failed"][0]["error"] and document["failed"][0]["error"] in said
    assert "1 of 3 images could not be scored" in said
    assert cli.main(["evaluate", "--hr", str(folders / "hr"), "--model", str(folders / "m.safetensors")]) == 1
    assert "mean of 2 of 3" in capsys.readouterr().out


def test_nothing_that_can_be_scored(tmp_path, score):
    (tmp_path / "hr").mkdir()
    (tmp_path / "hr" / "a.png").write_bytes(b"")
    code, document, said = score()
    assert code == 1 and document["images"] == [] and len(document["failed"]) == 1
    assert set(document["mean"].values()) == {None}
    assert "1 of 1 image could not be scored" in said


def test_what_was_scored_before_an_interruption_is_given(folders, capsys, monkeypatch):
    save_model(network(), folders / "m.safetensors")
    left = iter([False, True])

    def bands(self, rows, width, self_ensemble=False):
        if next(left):
            raise KeyboardInterrupt
        for part in rows:
            yield np.repeat(np.repeat(part, 2, 0), 2, 1)

    monkeypatch.setattr(Upscaler, "bands", bands)
    command = ["evaluate", "--hr", str(folders / "hr"), "--model", str(folders / "m.safetensors"), "--json"]
    assert cli.main(command) == 130
    document = json.loads(capsys.readouterr().out)
    assert [image["name"] for image in document["images"]] == ["a.png"] and document["complete"] is False


def test_equal_images_are_null_and_named(tmp_path, score):
    (tmp_path / "hr").mkdir()
    Image.fromarray(np.full((40, 40, 3), 99, np.uint8)).save(tmp_path / "hr" / "flat.png")
    _, document, _ = score()
    for scores in document["images"][0], document["mean"]:
        assert scores["bicubic_psnr"] is None and "bicubic_psnr" in scores["infinite"]


def test_a_score_that_does_not_exist_is_explained_and_not_in_the_mean(folders, score, capsys):
    """A narrow image has no SSIM, a flat one, which bicubic gives back, no finite PSNR."""
    whole = score("--protocol", "div2k")[1]
    Image.fromarray(make_image(60, 22)).save(folders / "hr" / "narrow.png")
    Image.fromarray(np.full((40, 40, 3), 99, np.uint8)).save(folders / "hr" / "flat.png")
    code, document, said = score("--protocol", "div2k")
    assert code == 0 and document["complete"]
    images = {image["name"]: image for image in document["images"]}
    why = {
        "narrow.png": "no SSIM, which needs 11 pixels a side: inside the border of 8 are 6 x 44",
        "flat.png": "bicubic: exact, so PSNR is infinite",
    }
    for name, line in why.items():
        assert images[name]["warnings"] == [line] and f"note: {name}: {line}" in said
    assert images["narrow.png"]["ssim"] is None and "warnings" not in images["a.png"]
    for field, without in ("psnr", "flat.png"), ("bicubic_psnr", "flat.png"), ("bicubic_ssim", "narrow.png"):
        mean = np.mean([image[field] for name, image in images.items() if name != without])
        assert document["mean"][field] == pytest.approx(mean)
    assert document["mean"]["counts"] == dict.fromkeys(FIELDS, 3) and "counts" not in whole["mean"]
    assert "mean SSIM of 3 of 4" in said and "mean PSNR of 3 of 4" in said
    save = ["evaluate", "--hr", str(folders / "hr"), "--model", str(folders / "m.safetensors"), "--protocol", "div2k"]
    assert cli.main(save) == 0
    captured = capsys.readouterr()
    assert "nan" not in captured.out and all(f"note: {name}: {line}" in captured.err for name, line in why.items())


@pytest.mark.parametrize("side", [13, 16, 17, 18, 19])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_images_about_as_small_as_the_border(folders, score, protocol, side):
    Image.fromarray(make_image(side, side)).save(folders / "hr" / "z.png")
    code, document, said = score("--protocol", protocol)
    fits = side >= 18 or (side == 17 and protocol != "div2k")
    assert (code, len(document["images"])) == ((0, 3) if fits else (1, 2))
    assert fits or f"z.png: {side} x {side} is too small to score" in said


def test_alpha_that_is_opaque_does_not_matter(folders, score):
    want = score()[1]["images"]
    for name in "hr/a.png", "hr/b.png", "lr/ax2.png":
        image = Image.open(folders / name)
        image.putalpha(255)
        image.save(folders / name)
    assert score()[1]["images"] == want
    assert score("--lr", folders / "lr")[1]["images"] == want


def test_gray_originals_are_scored_on_their_values(folders, score):
    """As MATLAB's scripts do; the same image as RGB has luma in 16..235, and 20 log10(255 / 219) = 1.32 dB more."""
    gray = np.asarray(Image.open(folders / "hr" / "b.png"))[:40]
    code, document, said = score()
    assert code == 0 and "gray images are scored on their values as they are, 0 to 255: 1 of 2" in said
    low = matlab_downscale(gray[..., None], 2).astype(np.float64)
    bicubic = matlab_round(matlab_bicubic(low, 40, 40))[2:-2, 2:-2, 0]
    error = np.mean((bicubic.astype(float) - gray[2:-2, 2:-2]) ** 2)
    assert document["images"][1]["bicubic_psnr"] == pytest.approx(10 * np.log10(255**2 / error))
    Image.fromarray(np.repeat(gray[..., None], 3, 2)).save(folders / "hr" / "b.png")
    code, colored, said = score("--lr", folders / "lr")  # the reduction stays gray
    assert code == 0 and "gray images" not in said
    more = colored["images"][1]["bicubic_psnr"] - document["images"][1]["bicubic_psnr"]
    assert more == pytest.approx(20 * np.log10(255 / 219), abs=0.1)


def test_gray_originals_are_scored_as_rgb_by_edsr_pytorch(folders, score):
    gray = np.asarray(Image.open(folders / "hr" / "b.png"))[:40]
    code, document, said = score("--protocol", "edsr")
    assert code == 0 and "gray images are scored as RGB, on luma: 1 of 2" in said
    Image.fromarray(np.repeat(gray[..., None], 3, 2)).save(folders / "hr" / "b.png")
    colored = score("--protocol", "edsr", "--lr", folders / "lr")[1]
    for field in "bicubic_psnr", "bicubic_ssim":  # an untrained network gives gray images colors
        assert document["images"][1][field] == pytest.approx(colored["images"][1][field])


def test_low_resolution_images_that_do_not_fit(folders, score):
    lr = folders / "lr"
    assert score("--lr", folders / "hr")[1]["failed"][0]["error"].endswith(
        " is not 2 times its low-resolution image, 51 x 43; check --scale and --lr"
    )
    Image.fromarray(make_image(22, 26, 1)[:, :, 0]).save(lr / "ax3.png")  # of another scale: not looked at
    Image.fromarray(make_image(21, 25)).save(lr / "a.jpg")
    code, document, said = score("--lr", lr)
    assert code == 1 and [image["name"] for image in document["images"]] == ["b.png"]
    assert f"{lr}: a.jpg and ax2.png may both belong to a.png; keep one of them" in said
    (lr / "a.jpg").unlink()
    Image.fromarray(make_image(21, 25, 1)[:, :, 0]).save(lr / "ax2.png")
    assert "a.png: its low-resolution image is gray, not RGB; check --lr" in score("--lr", lr)[2]
    (lr / "b.png").write_bytes(b"")
    assert score("--lr", lr)[1]["images"] == []
    (lr / "b.png").unlink()
    assert "no low-resolution image of b.png (b.png or bx2.png)" in score("--lr", lr)[2]
    (folders / "none").mkdir()
    code, document, said = score("--lr", folders / "none")
    assert code == 1 and "no images in this folder" in said and not document["complete"]


@pytest.mark.parametrize("option", ["--hr", "--lr", "--model"])
def test_names_with_nul(folders, capsys, option):
    assert cli.main(["evaluate", "--hr", str(folders / "hr"), option, "a\0b"]) == 2
    assert "NUL" in capsys.readouterr().err


# --- several networks


@pytest.fixture
def rivals(folders, monkeypatch):
    """Two networks in files of one name."""
    monkeypatch.chdir(folders)
    for name in "pq":
        (folders / name).mkdir()
        save_model(network(), f"{name}/best.safetensors")
    return ["p/best.safetensors", "q/best.safetensors"]


def test_networks_side_by_side_have_the_scores_that_each_has_alone(folders, rivals, capsys):
    (folders / "hr" / "c.png").write_bytes(b"")
    both = ["--model", rivals[0], "--model", rivals[1], "--hr", "hr", "--protocol", "rgb"]
    assert cli.main(["evaluate", *both, "--json"]) == 1
    together = list(map(json.loads, capsys.readouterr().out.splitlines()))
    alone = []
    for model in rivals:
        assert cli.main(["evaluate", "--model", model, "--hr", "hr", "--protocol", "rgb", "--json"]) == 1
        alone.append(json.loads(capsys.readouterr().out))
    assert together == alone and [document["model"] for document in alone] == rivals
    assert alone[0]["mean"]["psnr"] != alone[1]["mean"]["psnr"]
    assert cli.main(["evaluate", *both]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["p/best", "q/best", "bicubic"] and len({len(line) for line in lines}) == 1
    *_, p, _, q, _, bicubic, _ = lines[-1].split()
    assert lines[-1].startswith("mean of 2 of 3 ")
    assert [p, q, bicubic] == [
        f"{value:.2f}" for value in (*(a["mean"]["psnr"] for a in alone), alone[0]["mean"]["bicubic_psnr"])
    ]


def test_long_names_are_numbered(folders, rivals, capsys):
    mixture = "+".join(f"{model}:0.5" for model in rivals)
    assert cli.main(["evaluate", "--hr", "hr", "--model", rivals[0], "--model", mixture]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"(1) {rivals[0]}", f"(2) {mixture}"] and lines[2].split() == ["(1)", "(2)", "bicubic"]


def test_an_image_that_fails_with_one_network_fails_with_all(folders, monkeypatch):
    ours, theirs = Upscaler(network(), device="cpu"), Upscaler(network(), device="cpu")
    honest = Upscaler.bands

    def bands(self, rows, width, self_ensemble=False):
        rows = list(rows)
        if self is theirs and rows[0].shape[2] == 1:
            raise MemoryError
        return honest(self, iter(rows), width, self_ensemble)

    monkeypatch.setattr(Upscaler, "bands", bands)
    first, second = evaluate_all([ours, theirs], folders / "hr")
    assert ["error" in found for found in first] == [False, False]
    assert [found["error"] for found in second] == ["b.png: out of memory; try a smaller tile"] * 2
    with pytest.raises(ValueError, match="one scale"):
        next(evaluate_all([ours, Upscaler(network(3), device="cpu")], folders / "hr"))


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--model", "p/best.safetensors", "--model", "p/best.safetensors"], 2, "named twice"),
        (["--model", "p/best.safetensors", "--model", "x3.safetensors"], 2, "best.safetensors upscales x2, x3.safe"),
        (["--model", "p/best.safetensors", "--model", "auto"], 2, "not auto"),
        (["--model", "p/best.safetensors", "--overwrite"], 2, "--save"),
        (["--model", "p/best.safetensors", "--save", "hr"], 1, "holds the originals"),
        (["--model", "p/best.safetensors", "--save", "m.txt"], 1, "is no folder"),
    ],
)
def test_what_cannot_be_scored_side_by_side(folders, rivals, capsys, options, code, says):
    save_model(network(3), "x3.safetensors")
    (folders / "m.txt").touch()
    before = sorted(folders.rglob("*"))
    assert cli.main(["evaluate", "--hr", "hr", *options]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and says in captured.err and captured.err.count("\n") == 1
    assert sorted(folders.rglob("*")) == before


# --- results that are kept


def test_results_are_kept_for_each_network(folders, rivals, capsys):
    Image.open("hr/b.png").save("hr/a.tif")
    options = ["--hr", "hr", "--protocol", "rgb", "--json"]
    both = ["--model", rivals[0], "--model", rivals[1]]
    assert cli.main(["evaluate", *options, *both, "--save", "out/deep"]) == 0
    documents = list(map(json.loads, capsys.readouterr().out.splitlines()))
    names = ["a.png_x2.png", "a.tif_x2.png", "b_x2.png"]
    for document, name in zip(documents, ("p_best", "q_best"), strict=True):
        assert sorted(path.name for path in (folders / "out/deep" / name).iterdir()) == names
        for image in document["images"]:
            file = {"a.png": names[0], "a.tif": names[1], "b.png": names[2]}[image["name"]]
            result, original = (
                np.asarray(Image.open(path)) for path in (f"out/deep/{name}/{file}", f"hr/{image['name']}")
            )
            assert result.shape == (*(side // 2 * 2 for side in original.shape[:2]), *original.shape[2:])
            inside = (original[2 : result.shape[0] - 2, 2 : result.shape[1] - 2], result[2:-2, 2:-2])
            assert psnr(*inside) == image["psnr"]
    assert cli.main(["evaluate", *options, *both, "--save", "out/deep"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "a.png_x2.png: exists; add --overwrite" in captured.err
    assert cli.main(["evaluate", *options, *both, "--save", "out/deep", "--overwrite"]) == 0
    assert cli.main(["evaluate", *options, "--model", rivals[1], "--save", "alone"]) == 0
    for name in names:
        assert (folders / "alone" / name).read_bytes() == (folders / "out/deep/q_best" / name).read_bytes()


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (["edsr-baseline", "edsr-photo"], ["edsr-baseline", "edsr-photo"]),
        (["runs/a/best.safetensors", "runs/b/best.pt"], ["a/best", "b/best"]),
        (["a/x.safetensors", "a/x.pth", "edsr"], ["a/x.safetensors", "a/x.pth", "edsr"]),
        (["x.pt", "a/x.pt", "./b/../a/y.pt"], ["x", "a/x", "a/y"]),
        (["a/v1.2", "a:0.5+b/c.pt:0.5"], ["v1.2", "a:0.5+b/c.pt:0.5"]),
    ],
)
def test_short_names(models, names):
    assert short_names(models) == names


# --- what readers say


def test_what_is_not_read_as_it_stands_is_told(tmp_path):
    """Of originals and of low-resolution images, each in its own words."""
    (tmp_path / "hr").mkdir(), (tmp_path / "lr").mkdir()
    odd_tiff(tmp_path / "hr" / "a.tif", make_image(48, 60))
    odd_tiff(tmp_path / "lr" / "a.tif", make_image(24, 30))
    up = Upscaler(network(2, blocks=0, features=1), device="cpu")
    (image,) = evaluate(up, tmp_path / "hr")
    (line,) = image["warnings"]
    assert "is odd" in line
    (image,) = evaluate(up, tmp_path / "hr", tmp_path / "lr")
    assert image["warnings"] == [line, f"its low-resolution image: {line}"]


def test_a_network_that_is_no_upscaler_is_told_so(folders):
    for call in (
        lambda: next(evaluate(network(), folders / "hr")),
        lambda: compare(network(), folders / "hr" / "a.png"),
    ):
        with pytest.raises(TypeError, match=r"give edsr\.Upscaler\(model\), on a device, not EDSR"):
            call()
