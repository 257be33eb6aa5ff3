"""This project's networks in spandrel, so that what is built on it loads their files, whichever project wrote them.

    import edsr.integrations.spandrel

    edsr.integrations.spandrel.register()
    model = spandrel.ModelLoader().load_from_file("edsr_baseline_x2.pt")
    large = model(image)  # [1, 3, H, W] RGB in 0..1

spandrel hands over tensors without the header of their file. So a residual scale is found from the weights, and the
mean of this project's files is taken to be DIV2K's, which is that of all networks trained here; `load` knows both.
"""

import logging
import os

from edsr.errors import WeightsError
from edsr.models import TITLES, Network
from edsr.weights import load_state, load_with_info, recognize

try:
    from spandrel import MAIN_REGISTRY, Architecture, ArchRegistry, ArchSupport, ImageModelDescriptor, StateDict
except ModuleNotFoundError as error:
    if error.name == "spandrel":
        raise WeightsError("spandrel is a package of its own: pip install 'edsr-triton[spandrel]'") from None
    what = "the torchvision that was built for this torch" if error.name == "torchvision" else error.name
    raise WeightsError(f"spandrel needs a package that is missing; install {what}") from None
except Exception as error:  # of torchvision, which is imported along with it
    why = next(iter(str(error).splitlines()), type(error).__name__)[:120]
    advice = "install the torchvision that was built for this torch"
    raise WeightsError(f"spandrel cannot be imported ({why}); {advice}") from error

logger = logging.getLogger(__name__)


class NetworkArchitecture(Architecture[Network]):
    """How spandrel recognizes and loads one of our architectures: by all its tensors' names and shapes.

    Attributes:
        architecture: A key of `edsr.models.ARCHITECTURES`.
        scale: Of networks whose files do not state it.
        residual_scale: Of networks whose files do not state it; None to find it.
    """

    def __init__(self, architecture: str, scale: int | None = None, residual_scale: float | None = None):
        super().__init__(
            id=f"edsr-triton-{architecture}",
            name=TITLES[architecture],
            detect=lambda state_dict: recognize(state_dict) == architecture,
        )
        self.architecture, self.scale, self.residual_scale = architecture, scale, residual_scale

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[Network]:
        """The network of a state_dict of this architecture, with values in 0..1, in fp32.

        Raises:
            WeightsError: Its values are not finite, or it needs a residual scale that is none of the usual ones.
        """
        residual_scale = self.residual_scale if self.architecture in ("edsr", "mdsr") else None
        scale = self.scale if self.architecture in ("mdsr", "srcnn", "vdsr") else None
        model, info = load_state(state_dict, scale, residual_scale)
        for note in info["notes"]:
            logger.warning("%s", note)
        if info["layout"] == "edsr-triton" and self.architecture in ("mdsr", "srresnet"):
            assumed = "; ".join(info["terms"]["assumed"])
            logger.warning("%s assumed, without the file's header; %s.load reads it", assumed, __name__)
        return describe(model, self)


def register(
    registry: ArchRegistry = MAIN_REGISTRY, *, scale: int | None = None, residual_scale: float | None = None
) -> list[ArchSupport]:
    """Adds our architectures to a registry, after what is in it; those that it has already stay.

    Args:
        registry: By default that of all of spandrel's loaders.
        scale: Of networks whose files do not state it: SRCNN's and VDSR's, and which one of MDSR's; 2 by default.
        residual_scale: Of EDSR's, which no file states but this project's; by default it is found from the weights.

    Returns:
        What was added.
    """
    ours = [NetworkArchitecture(name, scale, residual_scale) for name in TITLES]
    return registry.add(*map(ArchSupport.from_architecture, ours), ignore_duplicates=True)


def load(
    name_or_path: str | os.PathLike[str], scale: int | None = None, residual_scale: float | None = None
) -> ImageModelDescriptor[Network]:
    """A descriptor, as spandrel's loaders give it, of whatever `edsr.load_model` loads, by its header.

    Args:
        name_or_path: As in `load_model`: a packaged name, a file, a folder, a repository, a mixture.
        scale: As there.
        residual_scale: As there.

    Raises:
        WeightsError: As there.
    """
    model, info = load_with_info(name_or_path, scale, residual_scale)
    for note in info["notes"]:
        logger.warning("%s: %s", os.fsdecode(name_or_path), note)
    return describe(model)


def describe(model: Network, architecture: Architecture[Network] | None = None) -> ImageModelDescriptor[Network]:
    """A descriptor of a network, which takes and gives [1, 3, H, W] RGB in 0..1.

    Args:
        model: In fp32.
        architecture: As which it was loaded; by default the one that it is of.
    """
    config = model.config
    tags = [f"{config.features}nf", *([f"{config.blocks}nb"] if hasattr(config, "blocks") else [])]
    return ImageModelDescriptor(
        model,
        model.state_dict(),
        architecture=architecture or NetworkArchitecture(config.architecture),
        purpose="SR",
        tags=tags,
        supports_half=True,
        supports_bfloat16=True,
        scale=config.scale,
        input_channels=3,
        output_channels=3,
        call_fn=lambda model, image: model(image).to(image.dtype),
    )
