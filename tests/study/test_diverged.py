"""What a study says where trainings were given up, or results came out exact."""

import csv
import re

import numpy as np
import pytest
from PIL import Image

from edsr.study.budgets import METHODS, SCALES, claim_runs, runs_of_variant, table_runs
from edsr.study.claims import OPEN, YES, findings
from edsr.study.measures import mean_of_finite
from edsr.study.report import write_report
from edsr.study.tables import method_rows, old_rows, row_texts
from tests.study.conftest import QUICK

RUNS = [run.name for run in table_runs(QUICK, 10)]


def diverge(study, *names):
    """Makes results what a worker writes of a run that diverged."""
    for name in names:
        study.results[name] |= {"diverged": "at step 7", "scales": {}}


@pytest.mark.parametrize("name", ["vdsr-x2x4", "srresnet-x2", None])
def test_a_report_of_what_diverged(study, name):
    """One of the table; all of it."""
    pytest.importorskip("matplotlib")
    gone = RUNS if name is None else [name]
    diverge(study, *gone)
    for run in gone:
        for scale in SCALES:
            for path in (study.squares[0].parents[1] / "images" / f"{run}-x{scale}").glob("*.png"):
                path.unlink()
    markdown, table, page = write_report(study)
    lacking = sum(len(run.scales) for run in table_runs(QUICK, 10) if run.name in gone)
    methods, old = (part.split("## ")[0] for part in re.split("## Methods|## At half", markdown.read_text())[1:])
    assert methods.count("| diverged | diverged |") == lacking and old.count("| diverged |") == lacking
    assert page.read_text().count("<td>diverged</td>") == 3 * lacking
    rows = list(csv.DictReader(table.open()))
    assert sum(row["diverged"] == "at step 7" and row["psnr"] == "" for row in rows) == lacking
    assert len(rows) == 2 * (1 + len(METHODS))


def test_a_panel_is_blank_where_an_image_is_gone(study):
    pytest.importorskip("matplotlib")
    out = study.squares[0].parents[1]
    write_report(study)
    before = np.asarray(Image.open(out / "figures" / f"{study.squares[0].stem}.png"))
    (out / "images" / "srcnn-x2-x2" / study.squares[0].name).unlink()
    write_report(study)
    after = np.asarray(Image.open(out / "figures" / f"{study.squares[0].stem}.png"))
    changed = np.flatnonzero((before != after).any((0, 2)))
    assert changed.size > 200 and changed.min() >= 8 + 264 and changed.max() < 8 + 264 + 256  # the second of a row


@pytest.mark.parametrize(
    ("variants", "open_claims"),
    [
        (["srresnet"], {"normalization", "shift"}),
        (["srresnet-plain"], {"normalization", "shift"}),
        (["edsr"], {"loss", "self-ensemble"}),
        (["edsr-l2"], {"loss"}),
        (["edsr-x4"], {"x4-from-x2", "self-ensemble"}),
        (["edsr-x4-from-x2"], {"x4-from-x2"}),
        (["edsr-right-range"], {"mean-shift"}),
        (["edsr-wrong-range"], {"mean-shift"}),
    ],
)
@pytest.mark.parametrize("all_of_them", [True, False])
def test_claims_that_lack_runs_are_not_decided(study, variants, open_claims, all_of_them):
    gone = [name for v in variants for name in runs_of_variant(v, QUICK)[: None if all_of_them else 1]]
    diverge(study, *gone)
    for finding in findings(study):
        assert finding.verdict == (OPEN if finding.name in open_claims else YES), finding.name
        if finding.name in open_claims:
            assert f"diverged: {gone[0]}" in finding.measured


def test_what_all_diverged_decides_nothing(study):
    diverge(study, *RUNS, *(run.name for run in claim_runs(QUICK, 10)))
    verdicts = {f.name: f.verdict for f in findings(study)}
    assert verdicts.pop("memory") == YES and verdicts.pop("residual-scale") == "no"
    assert {*verdicts.values()} == {OPEN}


def test_means_are_of_finite_scores(study):
    """Of equal images PSNR is infinite, which JSON cannot hold."""
    assert mean_of_finite([30.0, None, float("inf"), 32.0]) == 31.0 and mean_of_finite([None]) is None
    for name in "edsr-x2", "edsr-seed1":
        for key in "psnr", "psnr_ensemble":
            study.results[name]["scales"]["2"][key] = [None, 30.0]
    study.results["srcnn-x2"]["scales"]["2"]["psnr"] = [None, None]
    texts = {tuple(cells[:2]): cells for cells in map(row_texts, method_rows(study))}
    assert texts["EDSR", "x2"][2] == "30.00" and texts["SRCNN", "x2"][2] == "exact"
    assert {f.name: f.measured for f in findings(study)}["loss"].startswith("l1 30.00 dB")


def test_bicubic_is_averaged_over_finite_scores(study):
    Image.new("RGB", (128, 128), "white").save(study.squares[0])  # as older studies have some
    assert all(20 < row.psnr < 60 for row in method_rows(study) if row.method == "bicubic")


def test_half_of_what_diverged_is_not_told(study):
    diverge(study, "edsr-x2")
    rows = [row for row in old_rows(study) if (row.method, row.module) == ("EDSR", "x2")]
    assert [row.psnr for row in rows] == [None] and rows[0].epochs == 10 * QUICK.batch / 2
