"""Options in a TOML file: what a run writes, and what the command line takes."""

import tomllib

import pytest

from edsr.cli.console import UsageError
from edsr.models.edsr import EDSRConfig
from edsr.training import TrainConfig, config_file
from edsr.training.trainer import train
from tests.conftest import training
from tests.training.test_config import parsed


def from_file(tmp_path, text: str, *arguments: str) -> TrainConfig:
    path = tmp_path / "options.toml"
    path.write_text(text, encoding="utf-8")
    return parsed("--config", str(path), *arguments)


def test_a_file_is_as_the_command_line(tmp_path):
    text = (
        'data = ["a", "b c"]\nout = "run"\nsteps = "auto"\nminutes = 2.5\nval-every = 7\nsave_every = 9\nlr = 1e-05\n'
        'loss = "l2"\ndeterministic = true\ngraph = false\ndevice = "cpu"\nval = "v"\n'
        "blocks = 3\nresidual_scale = 0.1\n"
    )
    line = ["--data", "a", "b c", "--out", "run", "--steps", "auto", "--minutes", "2.5", "--val-every", "7"]
    line += ["--save-every", "9", "--lr", "1e-5", "--loss", "l2", "--deterministic", "--no-graph", "--device", "cpu"]
    line += ["--val", "v", "--blocks", "3", "--residual-scale", "0.1"]
    assert from_file(tmp_path, text) == parsed(*line)


def test_the_command_line_comes_first(tmp_path):
    text = 'data = ["a"]\nout = "run"\nsteps = 7\ndevice = "cuda"\ngraph = false\nval = ["v", "w"]\n'
    text += "deterministic = false\n"
    config = from_file(tmp_path, text, "--steps", "300000", "--device", "auto", "--data", "b", "--val", "x")
    assert (config.steps, config.device, config.data, config.val) == (300_000, "auto", ("b",), ("x",))
    assert config.out == "run" and not config.graph and not config.deterministic
    assert config.given == {"data", "steps", "val"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("steps = 0\n", "options.toml: argument --steps: give auto"),
        ('model = "srmd"\n', "options.toml: argument --model: invalid choice"),
        ("stepz = 3\n", "options.toml: unrecognized arguments: --stepz=3"),
        ("resume = true\n", "options.toml: unrecognized arguments: --resume"),
        ('out = ""\n', "options.toml: out is not a text"),
        ("[data]\na = 1\n", "options.toml: data is not a text"),
        ("steps 3\n", "options.toml: is not TOML"),
        ("\x00", "options.toml: is not TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_name(tmp_path, text, says):
    with pytest.raises(UsageError, match=says):
        from_file(tmp_path, text, "--data", "a", "--out", "run")


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UsageError, match=r"none\.toml: No such file or directory; give a TOML file with --config"):
        parsed("--config", str(tmp_path / "none.toml"), "--data", "a", "--out", "run")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"val": ("images", "images"), "blocks": 2, "features": 4, "residual_scale": 0.5, "deterministic": True},
        {"init": "none", "loss": "l2", "degrade": "jpeg:50", "graph": False, "seed": -3, "lr": 1e-5, "cache": "cache"},
    ],
)
def test_what_a_run_writes_makes_the_same_run(folder, tmp_path, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    first, again = tmp_path / 'a "run" \x7f\u00e9', tmp_path / "again"
    list(train(training("images", first, steps=3, **more)))
    monkeypatch.chdir(folder)  # paths are absolute
    config = parsed("--config", str(first / config_file.NAME), "--out", str(again))
    list(train(config))
    last = [(run / "last.safetensors").read_bytes()[-1000:] for run in (first, again)]
    assert last[0] == last[1]
    mine, other = (tomllib.loads((run / config_file.NAME).read_text("utf-8")) for run in (first, again))
    assert mine == other and mine["data"] == [str(folder)] and not {"out", "minutes", "decay"} & mine.keys()


def test_awkward_values_survive():
    config = TrainConfig(("/a\x7f\n\"b'\\\u00e9",), "run", network=EDSRConfig(blocks=3, features=5), steps=7)
    values = tomllib.loads(config_file.dump(config))
    assert values["data"] == list(config.data) and values["blocks"] == 3 and values["features"] == 5


@pytest.mark.usefixtures("tiny")
def test_the_file_of_a_run_resumed_says_what_its_options_are(folder, tmp_path):
    list(train(training(folder, tmp_path / "first", steps=1)))
    init = tmp_path / "first" / "last.safetensors"
    run = tmp_path / "run"
    path = run / config_file.NAME

    def go_on(**more):
        steps = train(TrainConfig((), str(run), resume=True, device="cpu", given=frozenset(more), **more))
        next(steps)
        steps.close()
        return tomllib.loads(path.read_text())

    steps = train(training(folder, run, init=str(init)))
    next(steps)
    steps.close()
    path.write_text(path.read_text() + "# mine\n")
    before = go_on()
    assert "# mine" in path.read_text()  # nothing has changed
    init.unlink()
    assert go_on(lr=5e-4) == before | {"lr": 5e-4} and before["init"] == str(init)
    path.write_text("garbled")
    assert go_on()["lr"] == 5e-4
