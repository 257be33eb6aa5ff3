"""The options of a training run: what they are, their defaults and choices.

Imports no torch: the command line builds its options from the fields, and --help answers at once.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from edsr.errors import TrainError
from edsr.wording import named

if TYPE_CHECKING:
    from edsr.data import Degradation

AUTO = "auto"
SCALES = (2, 3, 4)
# One network of these serves several scales, and is trained for all of them at once.
OF_SEVERAL_SCALES = ("mdsr-baseline", "mdsr", "vdsr")
MODELS = ("edsr-baseline", "edsr", *OF_SEVERAL_SCALES, "srcnn", "srcnn-955", "srresnet", "srgan")
ADVERSARIAL = "srgan"
LOSSES = ("l1", "l2", "charbonnier")
SHAPE = ("blocks", "features", "residual_scale")
SCHEDULES = ("cosine", "step", "wsd")
PRECISIONS = ("auto", "fp32", "bf16")
# Largest norm of a gradient: some ten times a trained network's usual one, so that only outliers are cut.
GRAD_CLIP_NORM = 0.5
DETERMINISTIC_INTERVAL = 1000  # steps between validations, and between checkpoints, where time must decide nothing
_OFTEN = "default: so often that it takes less than 2 % of the time"


def _option(default: Any, help: str, **more: Any) -> Any:
    """A field that is a command-line option: its default, help, choices and metavar."""
    return field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class TrainConfig:
    """What a training run is.

    Args:
        data: Sources of images to train on, as `edsr.data.load_dataset` takes them. May be empty for a run resumed.
        out: Folder of the run. "" for a decay: the folder of the source's name, "-decay-" and its step.
        model: Name of the network, one of MODELS: a key of `edsr.models.NETWORKS`.
        blocks, features, residual_scale: What the network has in place of the preset's; None: as that has. Such a
            network starts from random weights, unless `init` says otherwise.
        scale: How many times larger. Not for networks of several scales.
        scales: Those that a network of several scales is trained for, one step for each in turn; None: 2, 3 and 4.
        steps: Steps in all; "auto" for as many as fit into `minutes`, measured at the start.
        batch: Patches a step, over all processes.
        patch: LR pixels a side of a patch.
        lr: Peak of the learning rate.
        loss, schedule: One of LOSSES, of SCHEDULES; see `edsr.training.recipe`.
        vgg: For "srgan": file of torchvision's vgg19, whose features are compared in place of pixels.
        val: Validation images, as `data`: one source, or several, each of which is a set with a score of its own. None
            holds out some of data.
        val_every, save_every: Steps between validations, between checkpoints. None: see `edsr.training.intervals`,
            or DETERMINISTIC_INTERVAL if deterministic.
        init: Weights to start from (file, or packaged name: of this scale, if there are such, else x2). None for the
            default: the packaged x2 body of the same preset for scales 3 and 4, random weights otherwise; "none" for
            random weights always.
        resume: Whether to go on with the run in `out`.
        source: With `decay`: the folder of the run whose state is copied.
        decay: Steps in which the learning rate falls to 0, after a copy of the state of the run in `source`; "auto" as
            for steps. Its result is a run of its own in `out`.
        given: Names of the options that were chosen, where others are defaults; a resumed run has those from the run
            that it goes on with. None: all are chosen (but for data, if empty).
        minutes: Time after which to save and stop.
        seed: Of weights and patches.
        candidates: How many places are drawn for each patch, of which the one with the most detail is taken.
        recolor: Whether patches get other colors: `edsr.data.recoloring`. Not with `degrade`.
        degrade: What is done to LR patches, as `edsr.data.parse_degradation` reads it; None: nothing.
        device: "auto" for the fastest here, "cpu", "cuda", "cuda:N" or "mps".
        precision: "auto" (bf16 on CUDA, else fp32), "fp32" or "bf16".
        backend: "triton" (this project's kernels for GPUs), "winograd" (those for CPUs), "torch", or "auto": ours
            where they were measured to be faster.
        crop, cache: See `edsr.data.load_dataset`.
        graph: Whether to use CUDA graphs.
        deterministic: Whether bits repeat on CUDA, too.
        wandb: Project of Weights & Biases that the run is logged to, beside TensorBoard; None: it is not.
        clip: Largest norm of a gradient; larger ones are scaled down to it. inf: none is.
        network: The config of a network other than the preset's; its scale is ignored. It is not remembered: who
            resumes such a run gives it again.
    """

    data: tuple[str, ...] = field(
        metadata={
            "help": "folders of high-resolution images, the folder of DIV2K, or HDF5 files of image pairs (lr, hr)",
            "metavar": "PATH",
        }
    )
    out: str = field(
        metadata={
            "help": "folder of the run; may be left out with --decay",
            "metavar": "RUN",
        }
    )
    model: str = _option(
        "edsr-baseline",
        "edsr-baseline: 16 blocks of 64 features; edsr: 32 of 256, 30 times the work; mdsr-baseline, mdsr: for x2, x3 "
        "and x4 at once, 16 and 80 of 64; vdsr: 20 convolutions, for x2, x3 and x4; srcnn, srcnn-955: three; srresnet: "
        "16 blocks with batch normalization; srgan: srresnet against a discriminator",
        choices=MODELS,
    )
    blocks: int | None = _option(
        None,
        "blocks, each of two convolutions, whose result is added to their input; default: the model's",
        metavar="N",
    )
    features: int | None = _option(None, "channels between the blocks; default: the model's", metavar="N")
    residual_scale: float | None = _option(
        None,
        "what each block's result is multiplied by before it is added; 0.1 keeps networks of many features steady; "
        "default: the model's, 1, of edsr 0.1",
        metavar="X",
    )
    scale: int = _option(2, "how many times larger", choices=SCALES)
    scales: tuple[int, ...] | None = _option(
        None,
        "of mdsr and vdsr in place of --scale: those that it is trained for, a step for each in turn; default: 2 3 4",
        choices=SCALES,
    )
    steps: int | Literal["auto"] = _option(
        300_000, "steps in all; auto: as many as fit into --minutes, measured at the start", metavar="N|auto"
    )
    batch: int = _option(16, "patches a step, over all processes")
    patch: int = _option(48, "side of a patch in low-resolution pixels")
    lr: float = _option(2e-4, "learning rate at its peak")
    loss: str = _option(
        "l1",
        "what is minimized: the mean difference (l1), its square (l2), or a smooth l1 (charbonnier)",
        choices=LOSSES,
    )
    vgg: str | None = _option(
        None,
        "of srgan: compare features of VGG19 in place of pixels; weights as torchvision has them (vgg19-dcbb9e9d.pth)",
        metavar="FILE",
    )
    schedule: str = _option(
        "cosine",
        "how the learning rate falls; wsd: not before --decay, for runs that may be of any length",
        choices=SCHEDULES,
    )
    val: str | tuple[str, ...] | None = _option(
        None,
        "validation images, as --data; each PATH is a set with a score of its own, whose mean chooses the best weights "
        "(none: some of --data are held out)",
        metavar="PATH",
    )
    val_every: int | None = _option(
        None, f"steps between validations; {_OFTEN}; {DETERMINISTIC_INTERVAL} if --deterministic", metavar="N"
    )
    save_every: int | None = _option(
        None,
        f"steps between checkpoints; {_OFTEN}, 30 s apart at least; {DETERMINISTIC_INTERVAL} if --deterministic",
        metavar="N",
    )
    init: str | None = _option(
        None,
        "weights to start from; default: for x3 and x4 those for x2 (but for the last layers), else random ones",
        metavar="NAME|FILE|none",
    )
    resume: bool = False
    source: str | None = None
    decay: int | Literal["auto"] | None = _option(
        None,
        "with --resume RUN: N steps, or as many as fit into --minutes, in which the learning rate falls to 0, from a "
        "copy of the run's state; they are a run of their own, and RUN stays as it is",
        metavar="N|auto",
    )
    given: frozenset[str] | None = None
    minutes: float | None = _option(None, "save and stop after M minutes; see --steps auto, --decay auto", metavar="M")
    seed: int = _option(0, "number that initial weights and patches follow from")
    candidates: int = _option(
        4, "places drawn for each patch, of which the one with the most detail is taken; 1: any place", metavar="N"
    )
    recolor: bool = _option(
        False,
        "swap the color channels of half of the patches and make negatives of a quarter, so that few images teach "
        "more; not with --degrade",
    )
    degrade: str | None = _option(
        None,
        "make low-resolution patches what people's images are, each amount drawn from its range: jpeg:40-95, "
        "webp:50-90 (quality), noise:0-10 (8-bit levels), blur:0-1 (pixels), resize:0.8-1.2 (and back), by commas; "
        "clean:0.2 is the share left as it is. Best weights are then those of the best mean of clean and degraded PSNR",
        metavar="SPEC",
    )
    device: str = "auto"
    precision: str = _option("auto", "what is computed in; auto: bf16 on CUDA, else fp32", choices=PRECISIONS)
    backend: str = _option(
        "auto",
        "what computes, as with upscale; auto: the fastest",
        choices=("auto", "torch", "triton", "winograd"),
    )
    crop: int | None = _option(None, "cut images into squares of N pixels beforehand", metavar="N")
    cache: str | None = _option(None, "keep decoded images there, not in memory", metavar="DIR")
    graph: bool = _option(True, "without CUDA graphs, which start the many small parts of a step at once; slower")
    deterministic: bool = _option(False, "the same bits in every run, on CUDA too; nothing goes by the clock then")
    wandb: str | None = _option(
        None, "log to this project of Weights & Biases, too (pip install wandb)", metavar="PROJECT"
    )
    clip: float = GRAD_CLIP_NORM
    network: Any = None

    def interval(self, steps: int | None) -> int | None:
        """val_every or save_every as `edsr.training.intervals` takes it."""
        return DETERMINISTIC_INTERVAL if steps is None and self.deterministic else steps

    @property
    def serves_several_scales(self) -> bool:
        """Whether `scales` says what the network is trained for, not `scale`."""
        return self.model in OF_SEVERAL_SCALES if self.network is None else hasattr(self.network, "all_scales")

    @property
    def trained_scales(self) -> tuple[int, ...]:
        """What the network is trained for, ascending."""
        if not self.serves_several_scales:
            return (self.scale,)
        return tuple(sorted({*(self.scales or getattr(self.network, "all_scales", SCALES))}))

    @property
    def val_sources(self) -> tuple[str, ...]:
        """`val` as a tuple."""
        return (self.val,) if isinstance(self.val, str) else tuple(self.val or ())

    @property
    def shape(self) -> dict[str, int | float]:
        """What the network has in place of the preset's."""
        values = {name: getattr(self, name) for name in SHAPE}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def degradation(self) -> "Degradation | None":
        """What `degrade` means. Raises TrainError."""
        from edsr.data import parse_degradation

        try:
            return None if self.degrade is None else parse_degradation(self.degrade)
        except ValueError as error:
            raise TrainError(f"{named('degrade')}: {error}", misuse=True) from None
