"""`save_pretrained`, `from_pretrained` and model cards, in local folders."""

import json
import os
import re
import sys

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("huggingface_hub")

from safetensors import safe_open

from edsr import Upscaler, load_model
from edsr.errors import WeightsError
from edsr.integrations.hub import HubEDSR, HubMDSR, HubNetwork
from edsr.models import EDSR, NETWORKS, EDSRConfig, MDSRConfig, SRCNNConfig, SRResNetConfig, VDSRConfig, build_network
from edsr.weights import read_info, save_checkpoint, save_model
from tests.conftest import network
from tests.support.checkpoints import assert_same_state

RECORD = {"data": ["mine", "yours"], "licenses": ["CC0 1.0"], "steps": 7, "validation_psnr": 30.125}
TERMS = {"license": "CC BY 4.0"}
FILES = ["README.md", "config.json", "model.safetensors"]
CONFIGS = {
    "edsr": EDSRConfig(3, 1, 4, 0.3, (0.1, 0.2, 0.3)),
    "mdsr": MDSRConfig(blocks=1, features=4),
    "srcnn": SRCNNConfig(3),
    "vdsr": VDSRConfig(depth=3, features=4),
    "srresnet": SRResNetConfig(2, 1, 4),
}


@pytest.fixture
def model() -> EDSR:
    return network(2).float()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_is_saved_comes_back(config, tmp_path):
    assert set(CONFIGS) == {each.architecture for each in NETWORKS.values()}
    model = build_network(config).eval()
    ours = HubNetwork.wrap(model, RECORD, TERMS)
    assert ours.save_pretrained(tmp_path / "new" / "net") is None
    assert sorted(os.listdir(tmp_path / "new" / "net")) == FILES
    for again in HubNetwork.from_pretrained(tmp_path / "new" / "net"), type(ours).from_pretrained(tmp_path / "new/net"):
        assert type(again) is type(ours) and again.config == config and not again.training
        assert again.record == RECORD and again.terms == ours.terms
        assert_same_state(again, model)
    assert_same_state(load_model(tmp_path / "new" / "net"), model)
    x = torch.rand(1, 3, 7, 6)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_it_is_a_network_like_any_other(model, tmp_path):
    ours, image = HubNetwork.wrap(model), np.zeros((5, 6, 3), np.uint8)
    assert isinstance(ours, EDSR) and isinstance(ours, HubEDSR)
    assert (Upscaler(ours, "cpu")(image) == Upscaler(model, "cpu")(image)).all()
    save_model(ours, tmp_path / "x.safetensors")
    assert_same_state(load_model(tmp_path / "x.safetensors"), model)


def test_terms_travel(model, tmp_path):
    save_model(model, tmp_path / "x.safetensors", training=RECORD, terms=TERMS)
    HubNetwork.from_pretrained(tmp_path / "x.safetensors").save_pretrained(tmp_path / "net")
    terms = read_info(tmp_path / "net")["terms"]
    assert terms == {
        "license": "CC BY 4.0", "data": ["mine", "yours"], "data_licenses": ["CC0 1.0"], "origin": None, "assumed": []
    }  # fmt: skip
    with safe_open(tmp_path / "net" / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["terms"]) == terms
    front, body = card(tmp_path / "net")
    assert front["license"] == "cc-by-4.0"
    assert "Of the weights: CC BY 4.0." in body
    assert "- Images: mine, yours\n- Their licenses: CC0 1.0\n" in body and "Training: steps 7;" in body
    assert "| validation | 30.12 |  |" in body and "Assumed" not in body


def test_what_was_assumed_of_another_projects_file_travels(tmp_path):
    save_checkpoint(network(2, mean=(0.4488, 0.4371, 0.404)).float(), tmp_path / "x.pth")
    HubNetwork.from_pretrained(tmp_path / "x.pth").save_pretrained(tmp_path / "net")
    assert read_info(tmp_path / "net")["terms"]["origin"] == "basicsr"
    front, body = card(tmp_path / "net")
    assert "license" not in front and "Of the weights: not stated." in body
    assert "- pixels of 0..255, as basicsr's networks take them\n- mean of DIV2K, as in basicsr\n" in body
    assert "residual scale 1" in body


def card(folder) -> tuple[dict, str]:
    """The model card: what is before it, by another reader of YAML, and its text."""
    text = (folder / "README.md").read_text()
    front, body = re.fullmatch(r"---\n(.*?)\n---\n\n(.*)", text, re.S).groups()  # pyright: ignore
    return yaml.safe_load(front), body


def test_scores_are_a_table_and_machine_readable(model, tmp_path):
    ours = HubNetwork.wrap(model)
    ours.record["scores"] = {"Set5": {"psnr": 37.514, "ssim": 0.95871}, "Set|14": 33.1}
    ours.save_pretrained(tmp_path / "net", repo_id="me/net")
    front, body = card(tmp_path / "net")
    assert "| Set5 | 37.51 | 0.9587 |\n| Set\\|14 | 33.10 |  |\n" in body
    assert "edsr upscale photo.jpg --model hf-hub:me/net\n" in body
    (index,) = front["model-index"]
    found = {(r["dataset"]["name"], m["type"]): m["value"] for r in index["results"] for m in r["metrics"]}
    assert found == {("Set5", "psnr"): 37.514, ("Set5", "ssim"): 0.95871, ("Set|14", "psnr"): 33.1}
    assert (front["library_name"], front["pipeline_tag"]) == ("edsr-triton", "image-to-image")
    assert read_info(tmp_path / "net")["training"]["scores"] == ours.record["scores"]
    ours.record["scores"] = {"Set5": "good"}
    with pytest.raises(TypeError, match="scores are numbers"):
        ours.save_pretrained(tmp_path / "other")
    assert sorted(os.listdir(tmp_path)) == ["net"]


@pytest.mark.parametrize("stated", ["MIT", "mit", "My own", "---\nlicense: mit\n# x\x1b"])
def test_licenses_by_the_names_that_the_hub_knows(model, tmp_path, stated):
    HubNetwork.wrap(model, terms={"license": stated}).save_pretrained(tmp_path / "net")
    front, body = card(tmp_path / "net")
    assert front["license"] == ("mit" if stated.lower() == "mit" else "other")
    assert ("license_name" in front) == (stated.lower() != "mit")
    assert "\x1b" not in body and "\n# x" not in body


def test_in_a_folder_that_is_there_a_card_is_kept_and_the_rest_replaced(model, tmp_path, caplog):
    HubNetwork.wrap(network(3).float()).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "photo.png").write_text("mine, too")
    HubNetwork.wrap(model).save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([*FILES, "photo.png"])
    assert (tmp_path / "README.md").read_text() == "mine"
    assert "README.md: is kept as it is" in caplog.text
    assert_same_state(load_model(tmp_path, 2), model)


@pytest.mark.parametrize("there", [False, True])
def test_a_failure_leaves_things_as_they_were(model, tmp_path, there, monkeypatch):
    if there:
        HubNetwork.wrap(network(3).float()).save_pretrained(tmp_path / "net")
    before = {path.name: path.read_bytes() for path in (tmp_path / "net").glob("*")}

    def disk_full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edsr.integrations.hub.HubNetwork.generate_model_card", disk_full)
    with pytest.raises(WeightsError, match=r"net: cannot be written \(No space left on device\)"):
        HubNetwork.wrap(model).save_pretrained(tmp_path / "net")
    assert {path.name: path.read_bytes() for path in (tmp_path / "net").glob("*")} == before
    assert os.listdir(tmp_path) == (["net"] if there else [])


def test_a_file_in_the_place_of_the_folder(model, tmp_path):
    (tmp_path / "net").write_text("mine")
    with pytest.raises(WeightsError, match=r"net: cannot be written .*it is a file; name a folder"):
        HubNetwork.wrap(model).save_pretrained(tmp_path / "net")
    assert (tmp_path / "net").read_text() == "mine"


def test_who_may_not_read_the_source_may_not_read_the_copy(model, tmp_path):
    if os.name == "nt":
        pytest.skip("needs modes")
    save_model(model, tmp_path / "x.safetensors")
    os.chmod(tmp_path / "x.safetensors", 0o600)
    HubNetwork.from_pretrained(tmp_path / "x.safetensors").save_pretrained(tmp_path / "net")
    assert (tmp_path / "net" / "model.safetensors").stat().st_mode & 0o777 == 0o600


def test_of_another_architecture(model, tmp_path):
    HubNetwork.wrap(model).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="the network is of edsr; take HubNetwork, or HubEDSR"):
        HubMDSR.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"as edsr\.load_model gives it"):
        HubNetwork.wrap(torch.nn.Conv2d(3, 3, 3))  # pyright: ignore[reportArgumentType]


def test_names_that_load_model_takes(tmp_path):
    ours = HubNetwork.from_pretrained("edsr-baseline", scale=3)
    assert (ours.config.scale, ours.terms["license"]) == (3, "MIT")
    with pytest.raises(WeightsError, match="hf-hub:user/net: it is not in the cache"):
        HubNetwork.from_pretrained("user/net", local_files_only=True, cache_dir=tmp_path)
    assert not os.listdir(tmp_path)


def test_uploading_without_a_connection_is_one_line(model, monkeypatch, tmp_path):
    from huggingface_hub import HfApi

    def refuse(*arguments, **options):
        raise ConnectionError("nobody answers\nat all")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(WeightsError, match=r"^me/net: cannot be uploaded \(nobody answers\)"):
        HubNetwork.wrap(model).save_pretrained(tmp_path / "net", repo_id="me/net", push_to_hub=True)
    assert sorted(os.listdir(tmp_path / "net")) == FILES


def test_what_is_uploaded_is_what_would_be_saved(model, monkeypatch):
    from huggingface_hub import HfApi

    uploaded = {}

    class Created:
        repo_id = "me/net"

    def upload(self, folder_path, **options):
        uploaded.update({path.name: path.read_text("latin-1") for path in folder_path.iterdir()})
        return "address"

    monkeypatch.setattr(HfApi, "create_repo", lambda *arguments, **options: Created)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert HubNetwork.wrap(model, RECORD, TERMS).push_to_hub("me/net") == "address"
    assert sorted(uploaded) == FILES
    assert "hf-hub:me/net" in uploaded["README.md"]


def test_without_the_package(monkeypatch):
    monkeypatch.delitem(sys.modules, "edsr.integrations.hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"pip install 'edsr-triton\[hub\]'"):
        import edsr.integrations.hub  # noqa: F401
