"""Files that are no weights are named as what they are; those that are must not take more memory than they have."""

import io
import json
import os
import pickle
import socket
import struct
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from edsr.weights import container, load_model, read_info, save_model
from tests.conftest import ROOT
from tests.support.checkpoints import assert_same_state, basicsr, edsr_pytorch, refusal
from tests.support.processes import run
from tests.support.repeating import in_layout, repeating

# What else a file may be


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    return file.getvalue()


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return file.getvalue()


def image() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 3)).save(file, "PNG")
    return file.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5473344\n"
GRAPH = b"\x0a\x14\x0a\x05input\x12\x0bPlaceholder"
ONNX = b"\x08\x08\x12\x07pytorch\x3a\x06\x12\x04main\x42\x02\x10\x11"
OTHERS = [
    (b"", "an empty file", "download"),
    (b"<!DOCTYPE html>\n<html><title>404</title></html>", "a web page", "download the file itself"),
    (b"\n <html lang='en'>sign in</html>", "a web page", "download the file itself"),
    (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "a web page", "download the file itself"),
    (POINTER, "a Git LFS pointer", "git lfs pull"),
    (b'{"error": "Repository not found"}', "a text file", "download the file itself"),
    (b"Not Found", "a text file", "download the file itself"),
    ("Zugriff verweigert: geschützt".encode(), "a text file", "download the file itself"),
    (ONNX, "an ONNX network", ".pth"),
    (b"\x08\x07\x3a\x06\x12\x04main", "an ONNX network", ".pth"),
    (GRAPH, "a TensorFlow graph", ".pth"),
    (b"\x08\x01\x12\x80\x02\x0a\x04\x22\x02\x08\x01", "a TensorFlow network", ".pth"),
    (b"\x1c\0\0\0TFL3\x14\0\x20\0", "a TensorFlow Lite network", ".pth"),
    (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file", ".pth"),
    (b"GGUF\x03\0\0\0" + bytes(16), "a GGUF file", ".pth"),
    (b"7767517\n3 3\nInput in 0 1 in\n", "an ncnn network", ".pth"),
    (np.lib.format.magic(1, 0) + b"v\0{'descr'", "a NumPy array", ".pth"),
    (npz(), "an archive of NumPy arrays", ".pth"),
    (zipped("config.json", "metadata.json", "model.weights.h5"), "a Keras network", ".pth"),
    (zipped("weights/edsr_x2.pt", "README.txt"), "a zip archive", "unpack"),
    (tar(), "a tar archive", "unpack"),
    (b"\x1f\x8b\x08\0" + bytes(20), "a gzip archive", "unpack"),
    (b"7z\xbc\xaf\x27\x1c\0\4", "a 7-Zip archive", "unpack"),
    (b"\xfd7zXZ\0\0\4", "an xz archive", "unpack"),
    (b"BZh91AY&SY", "a bzip2 archive", "unpack"),
    (image(), "an image", "as the model"),
    (pickle.dumps({"head.0.weight": [0.5]}), "a pickled object", "torch.save"),
    (pickle.dumps([1, 2], protocol=2), "a pickled object", "torch.save"),
]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".onnx", ""])
@pytest.mark.parametrize(("content", "what", "advice"), OTHERS, ids=[f"{i}-{o[1]}" for i, o in enumerate(OTHERS)])
def test_other_files_are_named(content, what, advice, suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    message = refusal(path)
    assert f"not a file of weights, but {what}" in message and advice in message
    assert "weights_only" not in message and "torch.load" not in message


def test_suffixes_decide_between_protobuf_messages(tmp_path):
    for suffix, what in ((".onnx", "an ONNX network"), (".pb", "a TensorFlow graph")):
        (tmp_path / f"x{suffix}").write_bytes(b"\x08\x04\x22\x03abc\x00\xff")
        assert what in refusal(tmp_path / f"x{suffix}")


def test_the_content_counts_not_the_name(tmp_path):
    tensors, _ = basicsr(2)
    torch.save(tensors, tmp_path / "x.safetensors")
    save_file(tensors, tmp_path / "x.pth")
    assert_same_state(load_model(tmp_path / "x.safetensors"), load_model(tmp_path / "x.pth"))


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and sockets have no names there")
def test_what_is_no_regular_file_is_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo.pt")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.pt")
        for name in ("fifo.pt", "socket.pt", "/dev/zero", "/dev/null"):
            assert "is not a regular file" in refusal(name)
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    assert "no such file" in refusal("loop.pt")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    save_model(repeating(), tmp_path / "x.safetensors")

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    assert "cannot be read (Permission denied)" in refusal(tmp_path / "x.safetensors")


# Wrappers


def prefixed(prefix):
    return lambda tensors: {f"{prefix}{key}": value for key, value in tensors.items()}


def changed(tensors):
    return {key: value + 1 for key, value in tensors.items()}


WRAPPINGS = {
    **{
        key: lambda t, key=key: {key: t, "epoch": 3}
        for key in ("net", "generator", "model_state_dict", "net_g", "weights", "g_ema")
    },
    **{f"{prefix}*": prefixed(prefix) for prefix in ("net.", "netG.", "model.net.", "params_ema.", "a.b.c.d.", "G.")},
    "lightning": lambda t: {"state_dict": prefixed("model.net.")(t), "hyper_parameters": {"lr": 1}},
    "ema beside": lambda t: {"net_g": changed(t), "net_g_ema": t},
    "ema prefix beside": lambda t: prefixed("generator.")(changed(t)) | prefixed("generator_ema.")(t),
    "discriminator beside": lambda t: {"net_d": {"conv1.weight": t[next(iter(t))]}, "net": t},
    "discriminator prefix beside": lambda t: {"discriminator.conv1.weight": t[next(iter(t))]} | prefixed("g.")(t),
    "deep": lambda t: {"a": {"b": {"c": {"model": t}}}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("make", [basicsr, edsr_pytorch])
def test_the_network_is_found_in_any_wrapping(make, wrapping, tmp_path):
    tensors, _ = make(2)
    torch.save(tensors, tmp_path / "bare.pt")
    wrapped = WRAPPINGS[wrapping](tensors)
    torch.save(wrapped, tmp_path / "x.pt")
    assert_same_state(load_model(tmp_path / "x.pt"), load_model(tmp_path / "bare.pt"))
    if all(isinstance(value, torch.Tensor) for value in wrapped.values()):
        save_file({key: value.clone() for key, value in wrapped.items()}, tmp_path / "x.safetensors")
        assert_same_state(load_model(tmp_path / "x.safetensors"), load_model(tmp_path / "bare.pt"))


def test_a_file_that_contains_itself_many_times(tmp_path):
    content: dict = {"state_dict": {"x": torch.zeros(1)}}
    content |= {f"k{i}": content for i in range(300)}
    for i in range(300):
        content[f"k{i}"] = content
    torch.save(content, tmp_path / "x.pth")
    refusal(tmp_path / "x.pth")


# Sizes


def saved(tensors, **options) -> bytes:
    file = io.BytesIO()
    torch.save(tensors, file, **options)
    return file.getvalue()


def rezipped(data: bytes, change=lambda name, content: content, compression=zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return file.getvalue()


def smaller_storages(name: str, content: bytes) -> bytes:
    return content[:8] if "/data/" in name else content


def with_pickle(data: bytes) -> bytes:
    """An archive whose description is this pickle."""
    return rezipped(saved({}), lambda name, content: data if name.endswith("data.pkl") else content)


def call(module: str, name: str, size: int) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"\x8a\x08" + struct.pack("<q", size) + b"\x85R."


HUGE = 2**36
GREEDY = {
    "deflated zeros": rezipped(saved({"head.0.weight": torch.zeros(2**24)}), compression=zipfile.ZIP_DEFLATED),
    "storages smaller than their claim": rezipped(saved(basicsr(2)[0]), smaller_storages),
    "bytearray": with_pickle(call("builtins", "bytearray", HUGE)),
    "bytearray of Python 2": with_pickle(call("__builtin__", "bytearray", HUGE)),
    "storage": with_pickle(call("torch.storage", "UntypedStorage", HUGE)),
    "bytearray opcode": with_pickle(b"\x80\x05\x96" + struct.pack("<Q", HUGE) + b"."),
    "bytes": with_pickle(b"\x80\x04\x8e" + struct.pack("<Q", HUGE) + b"."),
    "memo": with_pickle(b"\x80\x02Nr\xff\xff\xff\x7f."),
    "frame": with_pickle(b"\x80\x04\x95" + struct.pack("<Q", HUGE) + b"."),
    "description": with_pickle(b"\x80\x02" + b"}" * 9_000_000 + b"."),
    "old format": saved({"head.0.weight": torch.zeros(4, 3, 3, 3)}, _use_new_zipfile_serialization=False).replace(
        b"K\x6cNt", b"\x8a\x05\0\0\0\0\x10Nt"
    ),
    "safetensors": struct.pack("<Q", 80)
    + json.dumps({"head.weight": {"dtype": "F32", "shape": [1 << 34], "data_offsets": [0, 1 << 36]}})
    .ljust(80)
    .encode(),
    "safetensors' header": struct.pack("<Q", 1 << 31) + b"{" + bytes(100),
}

LIMITED = """
import resource, sys
from edsr.weights import load_model
from edsr.errors import WeightsError
import torch, edsr.weights.readings
torch.nn.functional.conv2d(torch.zeros(1, 3, 9, 9), torch.zeros(3, 3, 3, 3))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
for path in sys.argv[1:]:
    try:
        load_model(path)
    except WeightsError as error:
        print(str(error).count("\\n"), "memory" in str(error))
"""


@pytest.mark.parametrize("name", GREEDY)
def test_claims_are_refused(name, tmp_path):
    (tmp_path / "x.pt").write_bytes(GREEDY[name])
    assert "defect" not in refusal(tmp_path / "x.pt")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the address space")
def test_claims_are_refused_before_anything_is_allocated(tmp_path):
    paths = []
    for i, data in enumerate(GREEDY.values()):
        paths.append(tmp_path / f"{i}.pt")
        paths[-1].write_bytes(data)
    command = [sys.executable, "-c", LIMITED, *map(str, paths)]
    ran = run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.splitlines() == ["0 False"] * len(paths), ran.stderr


def test_a_compressed_checkpoint_of_true_size_loads(tmp_path):
    tensors = basicsr(2)[0]
    (tmp_path / "x.pt").write_bytes(rezipped(saved(tensors), compression=zipfile.ZIP_DEFLATED))
    torch.save(tensors, tmp_path / "y.pt")
    assert_same_state(load_model(tmp_path / "x.pt"), load_model(tmp_path / "y.pt"))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_above_the_limit_is_not_read(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    with open(path, "wb") as file:
        file.truncate(container.MAX_BYTES + 1)
    assert "files of weights at most 4" in refusal(path)


def test_a_file_that_memory_does_not_hold_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "available_memory", lambda: 1_000_000)
    with open(tmp_path / "x.pt", "wb") as file:
        file.truncate(1_000_000_000)
    assert "needs 2.0 GB of memory, of which 0.0 GB are free" in refusal(tmp_path / "x.pt")


# Numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layout", ["basicsr", "edsr-pytorch", "edsr-triton"])
def test_weights_that_are_not_finite_are_told(value, layout, tmp_path):
    tensors = in_layout(repeating(), layout)
    name = [key for key in tensors if key.endswith("weight")][2]
    tensors[name][0, 0, 1, 1] = value
    torch.save(tensors, tmp_path / "x.pt")
    assert f"{name} is not finite" in refusal(tmp_path / "x.pt")


@pytest.mark.parametrize("key", ["mean", "residual_scale", "scale", "blocks", "features"])
@pytest.mark.parametrize("value", [1e300, -1e300, 1e39, [1e300, 0, 0], "x", None, {}, [], True, 10**400])
def test_headers_of_absurd_numbers_are_damaged(key, value, tmp_path):
    config = {"scale": 2, "blocks": 1, "features": 8, "residual_scale": 1.0, "mean": [0.4, 0.4, 0.4]}
    if value is True and key in ("residual_scale", "blocks"):
        pytest.skip("is 1, which is right")
    header = {"format": "edsr-triton", "config": json.dumps(config | {key: value})}
    save_file(repeating().state_dict(), tmp_path / "x.safetensors", header)
    assert "damaged" in refusal(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "training", ["[" * 200_000, "[" * 500 + "]" * 500, '{"a":' * 300 + "1" + "}" * 300, "{", "3", "null"]
)
def test_training_that_is_no_table_is_damage(training, tmp_path):
    config = {"scale": 2, "blocks": 1, "features": 8, "residual_scale": 1.0, "mean": [0.4, 0.4, 0.4]}
    header = {"format": "edsr-triton", "config": json.dumps(config), "training": training}
    save_file(repeating().state_dict(), tmp_path / "x.safetensors", header)
    assert "damaged (training" in refusal(tmp_path / "x.safetensors")


def test_info_prints_no_control_characters(tmp_path, run):
    path = tmp_path / "x\x1b]0;y\x07.safetensors"
    save_model(repeating(), path, training={"data": ["a\x1b[31m\u2028b"]})
    code, out, _ = run("info", path)
    assert code == 0 and not any(character < " " for line in out.splitlines() for character in line)
    assert read_info(path)["training"] == {"data": ["a\x1b[31m\u2028b"]}
