import importlib.util
import logging
import os
import signal
import urllib.request
from pathlib import Path

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # threads that wait for each other's cores take many times as long
    threads = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))  # also for child processes

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are imported

from edsr import cli
from edsr.kernels.winograd import ops as winograd_cpu
from edsr.models.edsr import EDSR, PRESETS, EDSRConfig
from edsr.training.config import TrainConfig
from edsr.weights import save_model
from tests.support import interpreter

if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
    interpreter.mend()

# A suite without a bug never fails by chance: no limits of time, and the same examples each time. Other examples are
# tried by --hypothesis-profile explore.
untimed = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
settings.register_profile("explore", **untimed)
settings.register_profile("same", derandomize=True, **untimed)
settings.load_profile("same")

# A shell ignores SIGINT for what it starts in the background, nohup SIGHUP, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels(tmp_path_factory):
    """The CPU kernels in a cache of the tests' own, so that no process has to compile them, which would be logged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        winograd_cpu.compile_ahead()
        yield


@pytest.fixture(autouse=True)
def quiet_log():
    """What a command in this process shows of the log ends with the test."""
    logger = logging.getLogger("edsr")
    handlers, level = logger.handlers, logger.level
    yield
    logger.handlers = handlers
    logger.setLevel(level)


@pytest.fixture(scope="session")
def shared():
    """The folder of evaluation images and foreign weights, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared with Set5, Set14 and foreign weights")
    return SHARED


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def chip(request) -> torch.device:
    """Where kernels run: in Triton's interpreter without a GPU, on the GPU with one."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if request.param == "interpreter" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("the interpreter is for machines without a CUDA device, or TRITON_INTERPRET=1")
    return torch.device("cpu" if request.param == "interpreter" else "cuda")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with an image and a small network; the current folder."""
    Image.fromarray(make_image(30, 40)).save(tmp_path / "photo.png")
    save_model(network(2), tmp_path / "m.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys):
    """Runs a command; gives exit code, standard output, standard error."""

    def call(*arguments):
        code = cli.main([*map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def upscale(run):
    """`run` for upscale, with the small network of `home`, or another `model`."""
    return lambda *arguments, model="m.safetensors": run("upscale", *arguments, "--model", model)


@pytest.fixture
def tiny(monkeypatch) -> EDSRConfig:
    """A small network that is trained in the place of edsr-baseline."""
    config = EDSRConfig(blocks=1, features=8)
    monkeypatch.setitem(PRESETS, "edsr-baseline", config)
    return config


@pytest.fixture
def folder(tmp_path) -> Path:
    """Images to train on, one of which will be held out."""
    where = tmp_path / "images"
    where.mkdir()
    for i in range(4):
        Image.fromarray(make_image(60 + i, 70, seed=i)).save(where / f"{i}.png")
    return where


@pytest.fixture(autouse=True)
def seeded(request):
    seed(request.node.nodeid)


def pytest_collectstart(collector):
    """What a module draws as it is imported is the same in every run; torch's own seed is another in each process."""
    seed(collector.nodeid)


def pytest_fixture_setup(fixturedef):
    """So is what a fixture of wider scope draws, which is set up before `seeded`."""
    if fixturedef.scope != "function":
        seed(f"{fixturedef.baseid}::{fixturedef.argname}")


def seed(name: str) -> None:
    torch.manual_seed(sum(map(ord, name)))


def network(scale=2, blocks=2, features=8, **options) -> EDSR:
    """A small network with random weights, in fp64, for inference."""
    return EDSR(EDSRConfig(scale=scale, blocks=blocks, features=features, **options)).double().eval()


def training(folder, out, **more) -> TrainConfig:
    """Options of a run of 12 steps."""
    usual = {"steps": 12, "batch": 2, "patch": 8, "val_every": 5, "save_every": 5, "device": "cpu", "lr": 1e-3}
    return TrainConfig(**{"data": (str(folder),), "out": str(out)} | usual | more)


def make_image(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 [H, W, C]: soft shapes and sharp edges, no two rows or columns alike."""
    y, x = np.mgrid[0:height, 0:width]
    random = np.random.default_rng(seed)
    phases = random.uniform(0, 6, (channels, 3))
    layers = [127 + 60 * np.sin(x / 7 + a) + 40 * np.cos(y / 5 + b) + 25 * ((x + y) % 13 < 6) for a, b, _ in phases]
    return np.clip(np.stack(layers, 2) + random.normal(0, 3, (height, width, channels)), 0, 255).astype(np.uint8)


def repeating_network(scale=2) -> EDSR:
    """A network that repeats every pixel, so that the right result of any image is known."""
    model = network(scale, blocks=1, features=8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for i in range(3):
            model.head.weight[i, i, 1, 1] = model.tail.weight[i, i, 1, 1] = 1
            model.upsampler[0].weight[i * scale**2 : (i + 1) * scale**2, i, 1, 1] = 1
    return model


@pytest.fixture(scope="session")
def s3_server():
    """The address of a server that answers as S3 does."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """S3 with an empty bucket "photos": botocore's own client."""
    boto3 = pytest.importorskip("boto3")
    settings = {"AWS_ENDPOINT_URL": s3_server, "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, value in {**settings, "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    forget_storage()
    client = boto3.client("s3")
    client.create_bucket(Bucket="photos")
    yield client
    urllib.request.urlopen(f"{s3_server}/moto-api/reset", data=b"").close()
    forget_storage()


@pytest.fixture
def memory():
    """fsspec's files in memory: none."""
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


def forget_storage() -> None:
    """Lets fsspec read its settings again."""
    import fsspec

    fsspec.filesystem("s3").clear_instance_cache()
