import json

import numpy as np
import pytest
from PIL import Image

from edsr import cli
from edsr.errors import EvaluateError, ImageError
from edsr.evaluation.scoring import evaluate, mean_scores
from edsr.images.resize import matlab_downscale
from edsr.inference.upscaler import Upscaler
from edsr.weights import list_packaged, load_model, save_model
from tests.conftest import make_image, network

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


@pytest.mark.parametrize("protocol", ["y", "rgb", "div2k"])
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
    assert set(document) == {"images", "mean"} and set(document["mean"]) == fields
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


def test_folders_that_do_not_fit(folders, tmp_path):
    up = Upscaler(network(), device="cpu")
    with pytest.raises(EvaluateError, match="check --scale"):
        list(evaluate(up, folders / "lr", folders / "lr"))
    (folders / "lr" / "b.png").unlink()
    with pytest.raises(EvaluateError, match=r"no low-resolution image of b\.png"):
        list(evaluate(up, folders / "hr", folders / "lr"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no images"):
        list(evaluate(up, tmp_path / "empty"))
    Image.fromarray(make_image(9, 9)).save(tmp_path / "empty" / "small.png")
    with pytest.raises(EvaluateError, match="too small to score"):
        list(evaluate(up, tmp_path / "empty"))
