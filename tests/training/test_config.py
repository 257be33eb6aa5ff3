"""The options of a run: told once, read by the command line without torch."""

import subprocess
import sys

from edsr.cli.parser import build_parser
from edsr.cli.train_options import training_options
from edsr.kernels import BACKENDS
from edsr.models import NETWORKS, SCALES, MDSRConfig, VDSRConfig
from edsr.training.config import MODELS, OF_SEVERAL_SCALES, TrainConfig
from tests.conftest import ROOT


def parsed(*arguments: str) -> TrainConfig:
    return TrainConfig(**training_options(build_parser().parse_args(["train", *arguments])))


def test_the_command_line_has_the_defaults_of_the_config():
    given = frozenset({"data"})
    assert parsed("--data", "a", "b", "--out", "run") == TrainConfig(("a", "b"), "run", given=given)


def test_the_command_line_sets_what_it_is_given():
    more = ["--loss", "l2", "--val-every", "7", "--deterministic", "--no-graph", "--steps", "auto", "--minutes", "2"]
    wanted = {"loss": "l2", "val_every": 7, "deterministic": True, "graph": False, "steps": "auto", "minutes": 2.0}
    given = frozenset({"data", "loss", "val_every", "deterministic", "steps"})
    assert parsed("--data", "a", "--out", "run", *more) == TrainConfig(("a",), "run", given=given, **wanted)


def test_sources_may_be_named_one_by_one_or_together():
    together = parsed("--data", "a", "b", "--out", "run", "--val", "c", "d")
    assert parsed("--data", "a", "--data", "b", "--out", "run", "--val", "c", "--val", "d") == together
    assert together.data == ("a", "b") and together.val_sources == ("c", "d")
    assert TrainConfig(("a",), "run", val="c").val_sources == ("c",) and TrainConfig(("a",), "run").val_sources == ()


def test_choices_are_what_there_is():
    choices = {name: field.metadata.get("choices") for name, field in TrainConfig.__dataclass_fields__.items()}
    assert set(choices["model"]) == set(MODELS) == NETWORKS.keys()
    several = {name for name, config in NETWORKS.items() if isinstance(config, MDSRConfig | VDSRConfig)}
    assert several == set(OF_SEVERAL_SCALES)
    assert choices["scale"] == choices["scales"] == SCALES and set(choices["backend"]) == {"auto", *BACKENDS}


def test_options_are_told_without_torch():
    code = (
        "import sys, edsr.cli.parser as p; p.build_parser(); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
