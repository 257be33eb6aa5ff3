"""The check of every kernel on a GPU: what is checked, what is said and kept. Nothing is timed here."""

import json
import os
import sys

import pytest
import torch

from bench import machine, records, verify
from bench.frames import GpuNetwork
from bench.isolate import Heartbeat
from bench.ops import SingleOp, operations
from bench.verify import Checked
from bench.workloads import Case, Unavailable, Workload

launch = pytest.importorskip("edsr.kernels.triton.launch", reason="needs Triton")
from edsr.kernels.triton.conv3x3 import MANY  # noqa: E402
from edsr.kernels.triton.hopper.dispatch import MIN_WIDTH  # noqa: E402


class MadeUp(Workload):
    """Of its cases one is not here and one is not ours. faulty: "ring" is wrong where it turns, with one
    multiprocessor. seen: for how many "ours" was run."""

    device, dtype, base, reference_error = "cpu", torch.float16, "cudnn", 0.25

    def __init__(self, faulty: bool = False):
        self.faulty, self.seen = faulty, []

    def __str__(self) -> str:
        return "faulty" if self.faulty else "made-up"

    @property
    def cases(self):
        return {
            "ours": Case("ours", lambda work: self.count),
            "absent": Case("ours, absent", self.absent),
            "ring": Case("ours, ring", lambda work: self.turn),
            "cudnn": Case("cuDNN", lambda work: lambda: torch.tensor(2.0)),
        }

    def count(self):
        self.seen.append(launch.multiprocessors(torch.device("cpu")))
        return torch.tensor(0.0)

    def turn(self):
        return torch.tensor(float(self.faulty and launch.multiprocessors(torch.device("cpu")) == 1))

    def absent(self, work):
        raise Unavailable("why")

    def error_of(self, y):
        return float(y)


def test_every_case_is_checked_as_it_is_and_narrowed():
    work, messages = MadeUp(), []
    item = Checked(work)
    text = verify.check(item, {}, Heartbeat(messages.append))
    assert list(text) == ["ours", "ours, narrowed", "absent", "absent, narrowed", "ring", "ring, narrowed"]
    assert text["ours"] == text["ours, narrowed"] == "off by 0.0e+00" and text["absent"] == "not here: why"
    assert work.seen == [132] * 3 + [1] * 3  # thrice each: the third time it may be a graph
    assert launch.multiprocessors(torch.device("cpu")) == 132
    parts = [message[1:] for message in messages if message[0] == "at"]
    assert parts == [("the result in fp64", 20.0), *((part, 20.0) for part in text)]
    assert [len(message[1]) for message in messages if message[0] == "so far"] == [1, 2, 3, 4, 5, 6]
    assert item.names()[:2] == ["made-up float16 ours", "made-up float16 ours, narrowed"]


def test_a_kernel_that_is_wrong_when_its_ring_turns_is_found():
    text = verify.check(Checked(MadeUp(faulty=True)), {}, Heartbeat())
    assert text["ring"] == "off by 0.0e+00" and text["ring, narrowed"].startswith("WRONG: wrong result: off by 1.0e+00")


def test_what_an_earlier_try_found_is_not_done_again():
    messages: list[tuple] = []
    before = {"ours": "off by 1", "ours, narrowed": "off by 2"}
    text = verify.check(Checked(MadeUp()), {"absent": "not done after 20.0 s"}, Heartbeat(messages.append, before))
    assert text["ours"] == "off by 1" and text["absent"] == "not done after 20.0 s"
    assert [message[1] for message in messages if message[0] == "at"][1:] == [
        "absent, narrowed",
        "ring",
        "ring, narrowed",
    ]


def test_what_is_used_most_comes_first_and_every_kernel_is_there():
    works = verify.works()
    names = [str(work).rsplit("-", 1)[0] for work in works]
    assert names[:2] == names[2:4] == ["edsr-baseline-x2", "edsr-baseline-x4"]
    assert [work.dtype for work in works[:4]] == [torch.float16] * 2 + [torch.bfloat16] * 2
    features = [work.features for work in works[4:] if isinstance(work, SingleOp)]
    assert features == sorted(features) and len(features) == len(works) - 4
    # Every operation in every precision once.
    assert len({(str(work), work.dtype) for work in works}) == len(works) == 4 + 2 * len(operations(3, 5))
    cases = {case for work in works for case in Checked(work).parts()}
    assert {"hopper, narrowed", "one_kernel, narrowed", "portable", "ours", "collapsed"} <= cases


def test_small_and_large_images_go_through_our_kernels():
    """Both the portable kernel and those for Hopper, as `edsr.kernels.triton.conv3x3.is_small` chooses."""
    sizes = {work.height * work.width >= MANY for work in verify.works() if isinstance(work, GpuNetwork)}
    assert sizes == {True, False} and verify.LARGE[1] >= MIN_WIDTH and verify.SIZE[0] * verify.SIZE[1] < MANY


def test_rings_turn_three_times_when_narrowed():
    rows = verify.SIZE[0] * -(-verify.SIZE[1] // 128)
    assert rows >= 3 * 10  # the most slots that a kernel for 64 features has


# --- the command


@pytest.fixture
def on_gpu(monkeypatch, tmp_path):
    """`main` as on a GPU, its processes made up: what they tell and give is put into the list."""
    found: list[tuple] = []
    monkeypatch.setattr(verify, "refused", lambda device: False)
    monkeypatch.setattr(verify, "describe", lambda device: machine.describe("cpu"))
    monkeypatch.setattr(verify, "works", lambda: [MadeUp(), MadeUp(faulty=True)])
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["check", "--seconds", "40"])

    def side_by_side(function, items, processes, deadline, so_far):
        assert 1 <= processes <= 2 and function is verify.check
        for item, (kind, words) in zip(items, found, strict=False):
            if kind == "told":
                so_far(item, words)
            else:
                yield item, words

    monkeypatch.setattr(verify, "side_by_side", side_by_side)
    return found


PARTS = [*Checked(MadeUp()).parts()]


@pytest.mark.parametrize(
    ("found", "code", "wrong", "missing"),
    [
        ([("done", dict.fromkeys(PARTS, "off by 1e-4")), ("done", dict.fromkeys(PARTS, "not here: why"))], 0, 0, 0),
        ([("done", dict.fromkeys(PARTS, "off by 1e-4")), ("told", {"ours": "off by 1e-4"})], 1, 0, 5),
        ([("done", dict.fromkeys(PARTS, "off by 1e-4")), ("done", "its process ended")], 1, 6, 0),
        ([("done", dict.fromkeys(PARTS, "WRONG: off by 1"))], 1, 6, 6),
        ([], 1, 0, 12),
    ],
)
def test_the_record_says_what_was_right_wrong_and_not_reached(on_gpu, tmp_path, found, code, wrong, missing):
    on_gpu += found
    assert verify.main() == code
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("-check.json")
    record = json.loads(path.read_text())
    assert (record["kind"], record["incorrect"], len(record["not_reached"])) == ("check", wrong, missing)
    assert len(record["cases"]) == 12 - missing


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="on a GPU, the command itself does this")
def test_real_work_is_checked_narrowed():
    work = next(work for work in verify.works("cpu", 3, 5) if str(work) == "head-64")
    text = verify.check(Checked(work), {}, Heartbeat())
    assert set(text) == {"ours", "ours, narrowed"} and all(words.startswith("off by") for words in text.values())
