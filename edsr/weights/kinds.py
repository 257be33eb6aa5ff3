"""What a file that should hold weights is instead, by its first bytes: for the line that refuses it."""

from pathlib import Path

FETCH = "download the file itself"
ASK = "give the checkpoint that it was made from (.safetensors, .pt, .pth)"
UNPACK = "unpack it, and give the file of weights in it"

_STARTS = (
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the file itself with git lfs pull"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes them", ASK),
    (b"\x93NUMPY", "a NumPy array", ASK),
    (b"GGUF", "a GGUF file", ASK),
    (b"ggml", "a GGML file", ASK),
    (b"7767517", "an ncnn network", ASK),
    (b"\x1f\x8b", "a gzip archive", UNPACK),
    (b"BZh", "a bzip2 archive", UNPACK),
    (b"\xfd7zXZ\x00", "an xz archive", UNPACK),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    (b"\x89PNG", "an image", "give a file of weights as the model"),
    (b"\xff\xd8\xff", "an image", "give a file of weights as the model"),
    (b"%PDF", "a PDF document", FETCH),
    (b"\x7fELF", "a program", FETCH),
    (b"MZ", "a program", FETCH),
)


def describe(start: bytes, path: Path) -> str:
    """What a file is, and what to do, where its first bytes tell; empty where they do not.

    Args:
        start: Its first bytes, a few hundred.
        path: The file; where bytes fit several kinds its ending decides.
    """
    if not start:
        return f"an empty file; {FETCH}"
    for magic, what, advice in _STARTS:
        if start.startswith(magic):
            return f"{what}; {advice}"
    if start[257:262] == b"ustar":
        return f"a tar archive; {UNPACK}"
    if start[4:8] == b"TFL3":
        return f"a TensorFlow Lite network; {ASK}"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<body", b"<script", b"<!--")):
        return f"a web page, as downloads that failed leave them; {FETCH}"
    if protobuf := _protobuf(start, path.suffix.lower()):
        return f"{protobuf}; {ASK}"
    if text.startswith((b"{", b"[")):
        return f"a text file (JSON?); {FETCH}"
    if _is_text(start):
        return f"a text file; {FETCH}"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickled object that torch.save has not written; ask for its state_dict, saved by torch.save"
    return ""


def describe_archive(names: list[str]) -> str:
    """The same of a zip archive that is no checkpoint of torch.save, by the names in it."""
    last = [name.rpartition("/")[2] for name in names]
    if "constants.pkl" in last or any("/code/" in name for name in names):
        return "TorchScript"
    if any(name.endswith(".npy") for name in last):
        return f"an archive of NumPy arrays (.npz); {ASK}"
    if "metadata.json" in last and any(name.endswith(".h5") for name in last):
        return f"a Keras network; {ASK}"
    return f"a zip archive of other files; {UNPACK}"


def _is_text(start: bytes) -> bool:
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # not a character that the end of `start` cuts
            return False
        text = start[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\t\r\n\f" for character in text)


def _protobuf(start: bytes, suffix: str) -> str:
    """ONNX and TensorFlow's graphs are protobuf messages without a magic number: their first fields tell."""
    # ONNX: field 1, a small version; then a producer (2) or the graph (7). TensorFlow: nodes (1), each with a name (1).
    if start[:1] == b"\x08" and len(start) >= 2 and start[1] < 32 and start[2:3] in (b"\x12", b"\x3a"):
        return "an ONNX network" if start[1] > 1 else "a TensorFlow network"
    node = start[1:2] and start[2 + (start[1] >> 7) :]
    if start[:1] == b"\x0a" and node and node[:1] == b"\x0a" and b"\x12" in node[:200]:
        return "a TensorFlow graph"
    if suffix == ".onnx" and start[:1] == b"\x08":
        return "an ONNX network"
    if suffix == ".pb" and start[:1] in (b"\x08", b"\x0a"):
        return "a TensorFlow graph"
    return ""
