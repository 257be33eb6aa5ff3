"""Records of the benchmarks: how they are merged, what is read out of them, tables and chart. Nothing is timed here."""

import json
import sys
from copy import deepcopy
from xml.etree import ElementTree

import pytest

from bench import records, report
from bench.frames import frames
from bench.ops import operations
from bench.workloads import Workload


def made_up_entry(work: Workload, seconds: dict[str, float], peak: float = 1000.0) -> dict:
    """An entry of a record, with figures nobody measured."""
    cases = {}
    for name, t in seconds.items():
        gflop = work.gflop(work.cases[name].collapsed)
        cases[name] = {
            "title": work.cases[name].title,
            "version": "0",
            "seconds": [t, t, t],
            "median": t,
            "turns": "1970-01-01T10",
            "run": "1970-01-01T09",
            "ratio": None,
            "gflop": gflop,
            "gflops": gflop / t,
            "ceiling_percent": gflop / t / 8000,
            "error": 1e-3,
            "peak_mib": peak,
        }
    entry = {"work": str(work), **work.description(), "ceiling": {"gflops": 8e5, "gbs": 4e3}}
    return entry | {"cases": cases, "incorrect": {}, "skipped": {"tensorrt": "not installed"}}


@pytest.fixture
def made_up_record() -> dict:
    machine = {"name": "NVIDIA Made-up", "device": "cuda", "multiprocessors": 1, "memory_gib": 1, "cuda": "0"}
    machine |= {"cudnn": 0, "triton": "0", "torch": "0", "python": "0", "system": "none", "date": "1970-01-01"}
    x2, x4, _, full = frames()[:4]
    entries = [
        made_up_entry(x2, {"ours": 0.008, "channels_last": 0.04, "compile": 0.012}),
        made_up_entry(x4, {"ours": 0.0083}),
        made_up_entry(full, {"ours": 0.25, "compile": 0.5}),
        made_up_entry(operations()[0], {"ours": 0.0003, "cudnn": 0.001}),
    ]
    return {
        "kind": "gpu",
        "machine": machine,
        "workloads": entries,
        "failed": {"x": "crashed"},
        "not_reached": ["y: a"],
    }


# --- records


def judged(record: dict) -> dict[str, tuple[str, str]]:
    """Of each aim by its title, or by title and number where it is met twice: what was measured, whether it is met."""
    rows = [[cell.strip() for cell in row.split("|")] for row in report.targets_table(record).splitlines()[2:]]
    found: dict[str, tuple[str, str]] = {}
    for _, title, _, measured, met, _ in rows:
        found[title if title not in found else f"{title} (2)"] = (measured, met)
    return found


def test_targets_judge_what_was_measured(made_up_record):
    found = judged(made_up_record)
    assert len(found) == len(report.TARGETS)
    assert list(found.values()) == [
        ("125 frames/s", "yes"),
        ("5 x", "yes"),
        ("1.5 x", "no"),
        ("not measured", ""),
        ("1.04 x", "yes"),
        ("79.7 %", "yes"),
        ("2 x", "yes"),
        ("not measured", ""),
        ("1.05 GB", "no"),
    ]


@pytest.mark.parametrize(
    ("gpu", "kind", "wanted", "met"),
    [
        ("NVIDIA H100 80GB HBM3", "H100", "100", "yes"),
        ("NVIDIA H200", "H200", "110", "no"),
        ("NVIDIA A100", "NVIDIA A100, as on an H100", "100", "yes"),
    ],
)
def test_aims_depend_on_the_gpu(made_up_record, gpu, kind, wanted, met):
    made_up_record["machine"]["name"] = gpu
    made_up_record["workloads"][0]["cases"]["ours"]["median"] = 1 / 105
    head, _, row, *_ = report.targets_table(made_up_record).splitlines()
    assert head.startswith(f"| aim on one {kind} |")
    assert f"at least {wanted} frames/s" in row and row.split("|")[-2].strip() == met


def test_targets_are_about_work_that_is_compared():
    names = [str(work) for work in frames()[:4]]
    assert sorted(names) == sorted([report.BASELINE, report.BASELINE_X4, report.SMALL, report.FULL])
    assert len({str(work) for work in frames()}) == len(frames()) == 16


def test_report_of_a_gpu(made_up_record):
    message = report.render(made_up_record)
    assert "| ours | 8.00 | 125 |" in message and "NVIDIA Made-up" in message
    assert "x: crashed" in message and "tensorrt: not installed" in message and "No time was left for: y: a." in message
    for line in message.splitlines():
        assert "|" not in line or (line.startswith("| ") and line.endswith(" |"))


def test_chart_is_a_image(made_up_record):
    image = ElementTree.fromstring(report.chart(made_up_record))
    space = "{http://www.w3.org/2000/svg}"
    bars = image.findall(f"{space}rect")[1:]  # the first is the background
    words = [element.text for element in image.findall(f"{space}text")]
    assert len(bars) == 6 and "edsr-baseline x2, 1920 x 1080" in words and "125" in words
    width, height = float(image.get("width", 0)), float(image.get("height", 0))
    for bar in bars:
        assert float(bar.get("x", 0)) + float(bar.get("width", 0)) < width - 50
        assert float(bar.get("y", 0)) + float(bar.get("height", 0)) < height


def test_the_chart_leaves_out_what_has_no_figures(made_up_record):
    made_up_record["workloads"].append(made_up_entry(frames()[5], {}) | {"height": 1080})
    assert report.chart(made_up_record).count("<rect") == 7


def test_report_of_a_check(made_up_record):
    cases = {"a": "off by 1e-4", "b, narrowed": "not done after 20.0 s", "c": "not here: why", "d": "WRONG: off by 1"}
    message = report.render(
        {"kind": "check", "machine": made_up_record["machine"], "cases": cases, "incorrect": 2, "not_reached": ["e"]}
    )
    assert "1 right, 2 wrong, 1 not here, 1 not reached" in message
    assert (
        "b, narrowed: not done after 20.0 s" in message
        and "d: WRONG: off by 1" in message
        and "Not reached: e." in message
    )


def test_without_a_gpu_the_report_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["report", "--chart", str(tmp_path / "chart.svg")])
    assert report.main() == 1
    assert report.NOT_MEASURED in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_records_on_file_can_be_rendered():
    for path in report.RESULTS.glob("*.json"):
        record = records.read(path)
        assert ("not reached" if record["kind"] == "check" else "|") in report.render(record)


# --- merging


def entry_of(run: str, seconds: dict[str, float], turns: str | None = "", work: int = 0) -> dict:
    """An entry of another run. turns: None for single samples."""
    entry = made_up_entry(frames()[work], seconds)
    for case in entry["cases"].values():
        case |= {"run": run, "turns": None if turns is None else f"{run}{turns}"}
    return entry


def test_a_day_is_one_record_case_by_case(monkeypatch, tmp_path, made_up_record):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    path = records.save(made_up_record)
    assert path.name == "nvidia-made-up-1970-01-01.json"
    later = entry_of("1970-01-01T11", {"ours": 0.007, "tensorrt": 0.013})
    records.save(made_up_record | {"workloads": [later], "run": "1970-01-01T11"})
    assert list(tmp_path.iterdir()) == [path]
    record = records.read(path)
    assert [entry["work"] for entry in record["workloads"]] == [e["work"] for e in made_up_record["workloads"]]
    cases = record["workloads"][0]["cases"]
    assert {name: case["median"] for name, case in cases.items()} == {
        "ours": 0.007,
        "channels_last": 0.04,
        "compile": 0.012,
        "tensorrt": 0.013,
    }
    assert "tensorrt" not in record["workloads"][0]["skipped"]
    records.save(made_up_record | {"workloads": [later], "run": "1970-01-01T11"})
    assert records.read(path) == record  # once more changes nothing


def test_ratios_are_of_one_run(made_up_record):
    """Ours was measured again, beside TensorRT: over eager it is as fast as when both were timed in turns."""
    later = entry_of("1970-01-01T11", {"ours": 0.004, "tensorrt": 0.008})
    record = records.merged(made_up_record, made_up_record | {"workloads": [later]})
    found = judged(record)
    assert found["`edsr-baseline` x2, 1080p"][0] == "250 frames/s"
    assert found["the same, over eager channels_last"][0] == "5 x"
    assert found["the same, over TensorRT"][0] == "2 x"
    assert found["`edsr-baseline` x4, 1080p, its time over that of x2"][0] == "1.04 x"
    cases = record["workloads"][0]["cases"]
    with pytest.raises(KeyError):
        report.faster(cases, "channels_last")
    assert "Measured apart" in report.render(record)
    assert "Measured apart" not in report.render(made_up_record)


def test_cases_of_one_run_that_were_not_timed_in_turns_have_no_ratio():
    again = entry_of("1970-01-01T11", {"ours": 0.004}, "again")
    both = [entry_of("1970-01-01T11", {"ours": 0.005, "compile": 0.008})]
    assert report.faster(both[0]["cases"], "compile") == pytest.approx(1.6)
    records.add_entry(both, again)
    assert both[0]["cases"]["ours"]["median"] == 0.004 and "earlier" not in both[0]
    with pytest.raises(KeyError):
        report.faster(both[0]["cases"], "compile")
    samples = entry_of("1970-01-01T11", {"ours": 0.005, "compile": 0.008}, None)
    with pytest.raises(KeyError):
        report.faster(samples["cases"], "compile")
    message = report.compare_table(samples)
    assert (
        "Single samples, before any rounds: ours; torch.compile, max-autotune." in message
        and "no rounds yet" in message
    )


def test_rounds_are_not_given_up_for_a_sample():
    entries = [entry_of("1970-01-01T11", {"ours": 0.005, "compile": 0.008})]
    before = deepcopy(entries[0]["cases"])
    records.add_entry(entries, entry_of("1970-01-01T12", {"ours": 0.009, "tensorrt": 0.01}, None))
    assert {name: entries[0]["cases"][name] for name in before} == before
    assert entries[0]["cases"]["tensorrt"]["median"] == 0.01
    records.add_entry(entries, entry_of("1970-01-01T12", {"tensorrt": 0.011}))
    assert entries[0]["cases"]["tensorrt"]["median"] == 0.011


def test_a_case_that_is_wrong_loses_its_figures_and_one_that_died_keeps_them():
    entries = [entry_of("1970-01-01T11", {"ours": 0.005, "compile": 0.008, "folded": 0.02})]
    later = entry_of("1970-01-01T12", {"folded": 0.01}) | {"incorrect": {"ours": "off by 1", "compile": "not done"}}
    records.add_entry(entries, later | {"failed": ["compile"]})
    assert set(entries[0]["cases"]) == {"compile", "folded"}
    assert "compile: not done" in report.compare_table(entries[0])
    records.add_entry(entries, entry_of("1970-01-01T13", {"ours": 0.005, "compile": 0.008}))
    assert entries[0]["incorrect"] == {} and "failed" not in entries[0]


def test_what_failed_or_was_not_reached_is_noted_until_it_is_done(made_up_record):
    x2, x4 = (str(work) for work in frames()[:2])
    before = made_up_record | {"failed": {x4: "crashed"}, "not_reached": [f"{x2}: tensorrt, compile", f"{x4}: nchw"]}
    again = entry_of("1970-01-01T11", {"ours": 0.01}, work=1)
    record = records.merged(before, made_up_record | {"workloads": [again], "failed": {}, "not_reached": []})
    assert "failed" not in record
    assert record["not_reached"] == [
        f"{x4}: nchw"
    ]  # of x2 there are figures of one, and why there are none of the other


def test_a_record_says_which_run_it_is_of_and_what_it_missed(monkeypatch, tmp_path, made_up_record):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    record = records.Record("gpu", made_up_record["machine"], kept=True)
    record.put(made_up_entry(frames()[0], {"ours": 0.008}))
    (path,) = tmp_path.iterdir()
    kept = json.loads(path.read_text())
    assert kept["workloads"][0]["cases"]["ours"]["run"] == kept["run"] == record.content["run"]
    assert not record.bad
    record.missed(str(frames()[0]), ("ours", "compile"))
    record.fail("x", "crashed")
    kept = json.loads(path.read_text())
    assert kept["not_reached"] == [f"{frames()[0]}: compile"] and kept["failed"] == {"x": "crashed"} and record.bad
    assert records.Record("gpu", made_up_record["machine"], kept=False).keep() is None


def test_records_on_file_can_be_added_to():
    """They have neither runs nor turns: what they hold was measured in one run each."""
    for path in report.RESULTS.glob("*-compare.json"):
        record = records.read(path)
        (first, *_) = record["workloads"]
        name = next(iter(first["cases"]))
        new = deepcopy(first["cases"][name]) | {"run": "2100-01-01", "turns": "2100-01-01", "median": 1.25}
        entry = first | {"cases": {name: new}, "incorrect": {}, "skipped": {}}
        both = records.merged(record, record | {"workloads": [entry], "run": "2100-01-01"})
        assert both["workloads"][0]["cases"][name]["median"] == 1.25
        assert both["workloads"][1:] == record["workloads"][1:]
        assert "Measured apart" in report.render(both)


def test_records_of_before_are_read(tmp_path, made_up_record):
    """What is "incorrect" was called "wrong"."""
    old = json.dumps(made_up_record | {"incorrect": 2}).replace('"incorrect"', '"wrong"')
    (tmp_path / "old.json").write_text(old)
    assert '"wrong"' in old and records.read(tmp_path / "old.json") == made_up_record | {"incorrect": 2}
    for path in sorted(records.RESULTS.glob("*.json")):
        for entry in records.read(path).get("workloads", ()):
            assert "incorrect" in entry and "wrong" not in entry


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (0.0123456, "0.0123"), (8.2034, "8.20"), (12345.6, "12,346")])
def test_three_digits_count(value, text):
    assert report.digits(value) == text
