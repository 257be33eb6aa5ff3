"""Worker processes: what is documented works, what would wait forever is refused in a line."""

import pickle
import sys

import numpy as np
import pytest

from edsr import EDSR, EDSRConfig, Upscaler
from tests.support.image_files import run

SCRIPT = """
import multiprocessing, sys
import numpy as np, torch
from edsr import EDSR, EDSRConfig, EDSRError, Upscaler
from edsr.images import read_image

torch.set_num_threads(2)  # whose threads a forked process does not have
backend, path = sys.argv[1:]
model = EDSR(EDSRConfig(blocks=1, features=16))
image = read_image(path)
before = Upscaler(model, "cpu", backend=backend)
expected = before(image)
x = torch.zeros(1, 3, 400, 400)

def use(made, results):
    try:
        threads = 2 if made == "with threads" else None
        upscaler = before if made.startswith("before") else Upscaler(model, "cpu", backend=backend, threads=threads)
        if made == "before, for tensors":
            before.tensor(x)
        results.put(str(np.abs(upscaler(read_image(path)).astype(int) - expected).max() <= 1))
    except EDSRError as error:
        results.put(f"error: {error}")

context = multiprocessing.get_context("fork")
for made in "before", "before, for tensors", "with threads", "in the worker":
    results = context.Queue()
    worker = context.Process(target=use, args=(made, results))
    worker.start()
    print(results.get())
    worker.join()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_forked_workers(tmp_path, backend):
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 255, (120, 130, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    refusal, for_tensors, threads, result = run(SCRIPT, backend, tmp_path / "a.png")
    assert threads.startswith("error: threads=2: a forked process has one") and "spawn" in threads
    assert refusal.startswith("error: an Upscaler cannot be used in a process forked") and "spawn" in refusal
    assert for_tensors == refusal
    assert result == "True"


def test_pickling_says_what_to_do():
    """As workers that are spawned would need it."""
    model = EDSR(EDSRConfig(blocks=1, features=8))
    with pytest.raises(TypeError, match="send the model"):
        pickle.dumps(Upscaler(model, "cpu", backend="torch"))
    assert pickle.loads(pickle.dumps(model)).config == model.config
