"""Folders and repositories in the layout of the Hugging Face Hub, which a server on this machine plays."""

import hashlib
import json
import logging
import os
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edsr.errors import WeightsError
from edsr.models import EDSR, MDSR, EDSRConfig, MDSRConfig
from edsr.weights import hub, load_model, read_info, save_model
from edsr.weights.header import CONFIGS
from tests.support.checkpoints import BLOCKS, FEATURES, assert_same_image, assert_same_state, edsr_pytorch, super_image

OWN = {"scale": 3, "blocks": 1, "features": 4, "residual_scale": 0.3, "mean": [0.1, 0.2, 0.3]}
SUPER_IMAGE = {"model_type": "EDSR", "n_resblocks": BLOCKS, "n_feats": FEATURES, "res_scale": 1, "scale": None}


@pytest.fixture
def model() -> EDSR:
    return EDSR(EDSRConfig(3, 1, 4, 0.3, (0.1, 0.2, 0.3))).eval()


@pytest.fixture
def folder(tmp_path, model) -> Path:
    """With a header that states all, and no config.json."""
    (tmp_path / "net").mkdir()
    save_model(model, tmp_path / "net" / "model.safetensors")
    return tmp_path / "net"


def bare(folder: Path, model) -> None:
    """The same tensors without a header, as huggingface_hub's own mixin writes them."""
    save_file({key: value.clone() for key, value in model.state_dict().items()}, folder / "model.safetensors")


def config(folder: Path, table) -> None:
    (folder / "config.json").write_text(table if isinstance(table, str) else json.dumps(table))


def refused(name, **options) -> str:
    with pytest.raises(WeightsError) as error:
        load_model(name, **options)
    assert str(error.value).isprintable()
    return str(error.value)


# Folders


@pytest.mark.parametrize("table", [None, OWN, {"architecture": "edsr", "format": "edsr-triton", **OWN}])
def test_a_header_or_a_config_states_all(folder, model, table):
    if table:
        bare(folder, model)
        config(folder, table)
    again = load_model(folder)
    assert again.config == model.config
    assert_same_state(again, model)
    info = read_info(str(folder))
    assert info["file"] == str(folder / "model.safetensors")
    assert info["residual_scale_source"] == "file" and info["notes"] == [] and info["terms"]["assumed"] == []


def test_a_network_of_several_scales(tmp_path):
    model = MDSR(MDSRConfig(blocks=1, features=4))
    bare(tmp_path, model)
    config(tmp_path, {"architecture": "mdsr", "scale": 2, "blocks": 1, "features": 4, "residual_scale": 1.0}
           | {"mean": [0.4488, 0.4371, 0.404], "all_scales": [2, 3, 4]})  # fmt: skip
    assert load_model(tmp_path, 3).config.scale == 3


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (OWN | {"scale": 2}, "config.json contradicts its header: x2 against x3"),
        (OWN | {"mean": [0, 0, 0]}, "config.json contradicts its header: mean 0, 0, 0 against mean 0.1, 0.2, 0.3"),
        (SUPER_IMAGE, "config.json is super-image's, but the file is this project's"),
        ({"model_type": "bert", "hidden_size": 768}, f"is of bert, and networks of {', '.join(CONFIGS)} are read here"),
        ({"architectures": ["ResNet"]}, "is of ResNet, and networks of"),
        ({}, "is of an unknown kind, and networks of"),
        ("[1]", "config.json: is damaged (no table)"),
        ("{", "config.json: is damaged ("),
        (OWN | {"blocks": None}, "config.json: is damaged (TypeError"),
        (OWN | {"scale": 5}, "config.json: is damaged (ValueError: scale must be 2, 3 or 4"),
        ('{"a":' * 1000, "config.json: is damaged ("),
        (" " * 1_000_001, "config.json: is damaged (too large)"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_config_that_does_not_suit_is_refused(folder, table, message):
    config(folder, table)
    assert message in refused(folder)


@pytest.mark.parametrize("make", [os.mkdir, getattr(os, "mkfifo", os.mkdir)])
def test_a_config_that_is_no_file_is_not_waited_for(folder, make):
    make(folder / "config.json")
    assert "config.json: is damaged (no file)" in refused(folder)


@pytest.mark.parametrize("change", [{"scale": 2}, {"blocks": 2}, {"features": 5}])
def test_a_config_that_contradicts_the_tensors_is_refused(folder, model, change):
    bare(folder, model)
    config(folder, OWN | change)
    assert "what is stated is another" in refused(folder)


def test_a_config_of_ours_beside_tensors_of_another_project_is_refused(folder):
    save_file({key: value.contiguous() for key, value in edsr_pytorch(3)[0].items()}, folder / "model.safetensors")
    config(folder, OWN)
    assert "config.json is of layout edsr-triton, but its tensors are named as in edsr-pytorch" in refused(folder)


def test_options_that_contradict_the_folder_are_refused(folder, model):
    assert "not x2; give another file" in refused(folder, scale=2)
    assert "says residual scale 0.3, not 1" in refused(folder, residual_scale=1)
    config(folder, OWN)
    bare(folder, model)
    assert "says residual scale 0.3, not 1" in refused(folder, residual_scale=1)


def test_folders_without_a_file_or_without_a_config_are_refused(folder, model, tmp_path):
    assert f"{tmp_path}: is a folder without model.safetensors; give the file of weights in it" in refused(tmp_path)
    bare(folder, model)
    message = refused(folder)
    assert "states no network" in message and "config.json" in message
    load_model(folder / "model.safetensors", residual_scale=0.3)  # by its tensors, as any other file


# super-image's


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_super_images_folders(tmp_path, scale):
    config(tmp_path, SUPER_IMAGE)
    files = {s: super_image(s) for s in (2, 3, 4)}
    for s, (tensors, _) in files.items():
        torch.save(tensors, tmp_path / f"pytorch_model_{s}x.pt")
    model = load_model(tmp_path, scale)
    assert model.config.scale == scale
    assert_same_image(model, files[scale][1], 1e-7)
    info = read_info(tmp_path, scale=scale)
    assert (info["layout"], info["residual_scale_source"]) == ("super-image", "file")
    assert load_model(tmp_path).config.scale == 2
    config(tmp_path, SUPER_IMAGE | {"scale": 4})
    assert load_model(tmp_path).config.scale == 4


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"n_resblocks": 9}, {}, "config.json says 9 blocks, and its tensors have 2"),
        ({"n_feats": 9}, {}, "config.json says 9 features, and its tensors have 5"),
        ({"n_colors": 1}, {}, "1 channels, and images here have 3"),
        ({"model_type": "MSRN"}, {}, "is of MSRN, and networks of"),
        ({}, {"scale": 4}, "is a folder without model.safetensors of x4"),
        ({"res_scale": 0.1}, {"residual_scale": 1}, "config.json says residual scale 0.1, not 1; leave it out"),
    ],
)
def test_super_images_folders_that_do_not_suit(tmp_path, change, options, message):
    config(tmp_path, SUPER_IMAGE | change)
    torch.save(super_image(2)[0], tmp_path / "pytorch_model_2x.pt")
    assert message in refused(tmp_path, **options)


def test_a_residual_scale_in_a_config_is_used(tmp_path):
    torch.save(super_image(2)[0], tmp_path / "pytorch_model_2x.pt")
    config(tmp_path, SUPER_IMAGE | {"res_scale": 0.1})
    assert load_model(tmp_path).config.residual_scale == 0.1


# Repositories


class Hub(ThreadingHTTPServer):
    """Answers as the Hub does, for one repository, and counts what is asked for."""

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.sizes, self.asked = files, {}, []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, whole: bool):
        server: Hub = self.server  # pyright: ignore
        repository, _, rest = self.path.removeprefix("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        server.asked.append((self.command, name))
        data = server.files.get(name)
        why = None if data is not None else "EntryNotFound"
        why = why if revision == "main" else "RevisionNotFound"
        why = {"closed/net": "GatedRepo", "user/net": why}.get(repository, "RepoNotFound")
        self.send_response(200 if why is None else 403 if why == "GatedRepo" else 404)
        commit = hashlib.sha1(repr(sorted(server.files.items())).encode()).hexdigest()
        self.send_header("X-Repo-Commit", commit)
        if why:
            self.send_header("X-Error-Code", why)
            data = b""
        assert data is not None
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("Content-Length", str(server.sizes.get(name, len(data))))
        self.end_headers()
        if whole:
            self.wfile.write(data)

    def log_message(self, format, *args):
        pass


def reach(monkeypatch, port: int | None) -> None:
    """Has the Hub at that port of this machine; at None nobody answers."""
    from huggingface_hub import constants

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{port or unused.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    path = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + path)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of downloads, and a Hub that nobody reaches."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    reach(monkeypatch, None)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def online(folder, cache, monkeypatch):
    """A Hub with the folder as `user/net`."""
    config(folder, OWN)
    server = Hub({path.name: path.read_bytes() for path in folder.iterdir()})
    reach(monkeypatch, server.server_port)
    yield server
    server.shutdown()
    server.server_close()


def test_a_repository_is_downloaded_once_told_and_then_there_offline(online, model, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "edsr")
    assert_same_state(load_model("hf-hub:user/net"), model)
    assert [r.message for r in caplog.records if r.name.startswith("edsr")] == [
        "downloading model.safetensors of user/net from the Hugging Face Hub (0.0 MB)"
    ]
    asked = len([1 for verb, _ in online.asked if verb == "GET"])
    assert_same_state(load_model("hf-hub:user/net"), model)
    assert len([1 for verb, _ in online.asked if verb == "GET"]) == asked, "it is downloaded once"
    reach(monkeypatch, None)
    caplog.clear()
    assert_same_state(load_model("hf-hub:user/net"), model)
    assert_same_state(load_model("user/net"), model)
    assert read_info("hf-hub:user/net@main")["scale"] == 3
    assert not caplog.records


def test_a_repository_of_a_file_with_a_header_alone(online, model, monkeypatch):
    del online.files["config.json"]
    assert_same_state(load_model("hf-hub:user/net"), model)
    reach(monkeypatch, None)
    assert_same_state(load_model("hf-hub:user/net"), model)


def test_super_images_repository_gives_the_file_of_the_scale(online, monkeypatch):
    for name in list(online.files):
        del online.files[name]
    online.files["config.json"] = json.dumps(SUPER_IMAGE).encode()
    for scale in (2, 4):
        torch.save(super_image(scale)[0], "x.pt")
        online.files[f"pytorch_model_{scale}x.pt"] = Path("x.pt").read_bytes()
    assert load_model("hf-hub:user/net", 4).config.scale == 4
    assert ("GET", "pytorch_model_2x.pt") not in online.asked
    assert load_model("hf-hub:user/net").config.scale == 2
    assert "upscales x3" in refused("hf-hub:user/net", scale=3)


def test_a_plain_name_downloads_nothing(online, cache):
    message = refused("user/net")
    assert "no such file" in message and message.endswith("is named hf-hub:user/net")
    assert not online.asked and not cache.exists()


def test_a_file_or_folder_comes_first(online, folder, model):
    (folder.parent / "user").mkdir()
    folder.rename(folder.parent / "user" / "net")
    assert_same_state(load_model("user/net"), model)
    assert not online.asked


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf-hub:other/net", "there is no such repository on the Hub, or it is private"),
        ("hf-hub:closed/net", "its owners ask for their terms to be accepted"),
        ("hf-hub:user/net@old", "there is no such revision"),
        ("hf-hub:net", "a repository is named hf-hub:USER/NAME"),
        ("hf-hub:a/b/c", "a repository is named hf-hub:USER/NAME"),
        ("hf-hub:../net", "a repository is named hf-hub:USER/NAME"),
    ],
)
def test_names_that_lead_nowhere(online, cache, name, message):
    text = refused(name)
    assert name in text and message in text
    assert not list(cache.rglob("*.safetensors"))


def test_what_is_no_network_for_us_is_not_downloaded(online, cache):
    online.files["config.json"] = b'{"model_type": "llama"}'
    assert "is of llama" in refused("hf-hub:user/net")
    online.files["config.json"] = json.dumps(OWN).encode()
    online.sizes["model.safetensors"] = 5_000_000_000
    assert "model.safetensors has 5.0 GB" in refused("hf-hub:user/net")
    assert ("GET", "model.safetensors") not in online.asked
    online.files.pop("model.safetensors")
    assert "there is no model.safetensors in it" in refused("hf-hub:user/net")
    assert not list(cache.rglob("*.safetensors"))


def test_without_a_connection_there_is_one_line_and_nothing_is_left(cache):
    assert refused("hf-hub:user/net") == (
        "hf-hub:user/net: it is not in the cache, and there is no connection to the Hub"
    )
    assert not cache.exists()


def test_without_the_package(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refused("hf-hub:user/net").endswith("needs a package: pip install 'edsr-triton[hub]'")
    assert "no such file" in refused("user/net")


def test_a_folder_needs_no_package(folder, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert_same_state(load_model(folder), model)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("user/net", hub.Repository("user/net", None, False)),
        ("hf-hub:user/net@v1.0", hub.Repository("user/net", "v1.0", True)),
        ("runs/best.safetensors", None),
        ("runs/x2/best", None),
        ("/user/net", None),
        ("./user", None),
        ("edsr-baseline", None),
        ("user/net:0.5+edsr-baseline:0.5", None),
        ("hf-hub:user/net:0.5+edsr-baseline:0.5", None),
    ],
)
def test_what_a_name_may_mean(name, found):
    assert hub.parse_repository(name) == found


def test_repositories_mix(online):
    mixed = load_model("hf-hub:user/net:0.5+net:0.5")
    assert mixed.config.scale == 3
    with pytest.raises(WeightsError, match=r"no such file.*hf-hub:user/other"):
        load_model("user/other:0.5+net:0.5")
