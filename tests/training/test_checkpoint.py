import errno
import json
import os

import pytest
import torch

from edsr.errors import CheckpointError
from edsr.training import checkpoint
from edsr.training.checkpoint import Checkpoint


def some(step: int) -> Checkpoint:
    tensors = {"a": torch.randn(3, 4, 3, 3).to(memory_format=torch.channels_last), "b": torch.tensor(float(step))}
    return Checkpoint(step, tensors, {"best_psnr": None, "divergence": [0.1, 0.2, step], "name": "ü"})


def same(x: Checkpoint, y: Checkpoint) -> bool:
    tensors = x.tensors.keys() == y.tensors.keys() and all(torch.equal(x.tensors[k], y.tensors[k]) for k in x.tensors)
    return tensors and x.step == y.step and x.record == y.record


def test_what_is_written_is_read(tmp_path, lines):
    for step in 3, 5, 10:
        last = some(step)
        checkpoint.write(tmp_path, last)
        assert same(checkpoint.load_latest(tmp_path), last)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-00000005", "checkpoint-00000010"]
    assert not lines


def test_files_stay_below_sixteen_megabytes(tmp_path):
    tensors = {f"w{i}": torch.randn(1_000_000) for i in range(9)}
    big = Checkpoint(1, tensors, {})
    checkpoint.write(tmp_path, big)
    sizes = [p.stat().st_size for p in (tmp_path / "checkpoint-00000001").iterdir()]
    assert len(sizes) == 4 and max(sizes) < 16_000_000
    assert same(checkpoint.load_latest(tmp_path), big)


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "state", "empty", "version", "list"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage, lines):
    first = some(1)
    checkpoint.write(tmp_path, first)
    checkpoint.write(tmp_path, some(2))
    folder = tmp_path / "checkpoint-00000002"
    piece, state = folder / "00.safetensors", folder / "state.json"
    data = piece.read_bytes()
    if damage == "cut":
        piece.write_bytes(data[:-1])
    elif damage == "flip":
        piece.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "gone":
        piece.unlink()
    elif damage == "state":
        state.unlink()
    elif damage == "empty":
        state.write_bytes(b"")
    elif damage == "version":
        state.write_text(json.dumps(json.loads(state.read_text()) | {"version": 99}))
    else:
        state.write_text("[]")
    assert same(checkpoint.load_latest(tmp_path), first)
    assert len(lines) == 1 and "checkpoint-00000002" in lines[0] and "\n" not in lines[0]
    (tmp_path / "checkpoint-00000001" / "state.json").unlink()
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        checkpoint.load_latest(tmp_path)


def test_a_half_written_one_is_not_seen_and_swept_away(tmp_path):
    part = tmp_path / ".edsr-0123456789ab.part"
    part.mkdir()
    (part / "00.safetensors").write_bytes(b"half")
    assert not checkpoint.exists(tmp_path) and not checkpoint.exists(tmp_path / "nowhere")
    checkpoint.write(tmp_path, some(2))
    assert not part.exists() and checkpoint.exists(tmp_path)


def test_a_full_disk_leaves_the_last_one_and_says_so(tmp_path, monkeypatch):
    first = some(7)
    checkpoint.write(tmp_path, first)

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"No space left.*step 7 is safe.*resume=True") as caught:
            checkpoint.write(tmp_path, some(8))
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-00000007"]
    assert same(checkpoint.load_latest(tmp_path), first)


def test_one_before_a_step_can_be_asked_for(tmp_path):
    for step in 5, 9:
        checkpoint.write(tmp_path, some(step))
    wanted = {None: 9, 9: 9, 8: 5, 5: 5, 4: 5}
    assert {before: checkpoint.load_latest(tmp_path, before).step for before in wanted} == wanted
