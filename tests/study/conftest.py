"""Images to study, and a study whose results are made up."""

import numpy as np
import pytest
from PIL import Image

from edsr.study.budgets import BUDGETS, claim_runs, table_runs
from edsr.study.images import make_test_squares
from edsr.study.runner import Study, StudyConfig

QUICK = BUDGETS["quick"]


def photographs(folder, count, side=140):
    folder.mkdir(parents=True)
    for i in range(count):
        y, x = np.mgrid[0:side, 0:side]
        waves = [128 + 90 * np.sin(x / (3 + i + c)) * np.cos(y / (4 + c)) for c in range(3)]
        Image.fromarray(np.stack(waves, 2).astype(np.uint8)).save(folder / f"{i}.png")


def result(rng, run, psnr, **more):
    squares = [psnr + rng.normal() / 100 for _ in range(2)]
    curve = [{"step": step, "psnr": psnr - 1 / step} for step in (5, 10)]
    scale = {"psnr": squares, "ssim": [0.9, 0.8], "psnr_ensemble": [p + 0.1 for p in squares], "seconds": 1.0}
    scale |= {"multiply_adds": 1e9, "shift": [0.1, 0.2, 0.3], "contrast": 0.99}
    found = {"steps": 10, "diverged": None, "train_seconds": 2.0, "rollbacks": 0, "curve": curve, "parameters": 9}
    return found | {"peak_bytes": 1e8, "scales": {str(s): scale for s in run.scales}} | more


@pytest.fixture
def study(tmp_path):
    """A study with made-up results, in which all claims hold."""
    photographs(tmp_path / "photos", 2)
    squares = make_test_squares(sorted((tmp_path / "photos").iterdir()), tmp_path / "out" / "test", 2)
    config, rng = StudyConfig((str(tmp_path / "photos"),), str(tmp_path / "out"), claims=True), np.random.default_rng(0)
    results = {}
    for run in [*table_runs(QUICK, 10), *claim_runs(QUICK, 10)]:
        psnr = {"edsr-l2": 29, "edsr-x4-from-x2": 31, "edsr-wrong-range": 20}.get(run.name.rpartition("-seed")[0], 30)
        plain = run.name.startswith("srresnet-plain")
        results[run.name] = result(rng, run, psnr + (1 if plain else 0))
        if run.name.startswith("wide-1"):
            results[run.name] |= {"diverged": "at step 7", "scales": {}}
        if run.name.startswith("srresnet") and not plain:
            for of_scale in results[run.name]["scales"].values():
                of_scale["shift"] = [3.0 + rng.normal() / 100] * 3
        for scale in run.scales:
            folder = tmp_path / "out" / "images" / f"{run.name}-x{scale}"
            folder.mkdir(parents=True)
            for path in squares:
                (folder / path.name).write_bytes(path.read_bytes())
    return Study(config, QUICK, 10, results, 2, squares, "photos & <others>")
