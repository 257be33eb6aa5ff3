"""The command `study`: trains the whole family alike and writes what was measured. Imports no torch before it must."""

import argparse
from argparse import Namespace

from edsr.progress import describe_seconds

from .arguments import add_threads, execution_group, int_between
from .checks import check_named_files
from .console import print_result


def add_study(commands, parents) -> None:
    command = commands.add_parser(
        "study",
        parents=parents,
        usage="%(prog)s --data DIR... --out DIR [--budget quick|cpu|gpu] [--claims] [options]",
        help="train SRCNN, VDSR, SRResNet, SRGAN, EDSR and MDSR alike, and compare them in tables and figures",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Trains each network at x2 and x4 with the same number of steps, patches and images, then writes\n"
        "study.md, study.csv and study.html, one page that holds all: scores, parameters, work, times and memory,\n"
        "learning curves, and results side by side. Interrupted, the same command goes on where it was.",
        epilog="examples:\n"
        "  %(prog)s --data BSD500/ --out studies/quick                     a rehearsal: minutes on two CPU cores\n"
        "  %(prog)s --data BSD500/ --out studies/night --budget cpu --claims\n"
        "  %(prog)s --data DIV2K_train_HR/ --test Set14/HR --out studies/gpu --budget gpu",
    )
    command.add_argument(
        "--data",
        required=True,
        nargs="+",
        action="extend",
        metavar="DIR",
        help="folders of images; of one that has train and test in it, as BSD500's, each is used as it is called; of "
        "others every tenth image is scored and not trained on",
    )
    command.add_argument("--test", metavar="DIR", help="images to score, none of which may be in --data")
    command.add_argument("--out", required=True, metavar="DIR", help="folder of the study")
    command.add_argument(
        "--budget",
        default="quick",
        choices=("quick", "cpu", "gpu"),
        help="quick, the default: small networks, minutes; cpu: networks as published, a night; gpu: 100,000 "
        "steps each",
    )
    command.add_argument(
        "--steps", type=int_between(10, 10**7), metavar="N", help="of each network and scale, in place of the budget's"
    )
    command.add_argument(
        "--claims",
        action="store_true",
        help="also train what EDSR's claims compare, and say of each whether it holds here",
    )
    execution = execution_group(command)
    add_threads(execution, "one for each core, divided among --jobs")
    execution.add_argument(
        "--jobs",
        type=int_between(1, 64),
        default=1,
        metavar="N",
        help="how many trainings run at once, each on fewer cores; default: 1, so that their times are undisturbed",
    )


def run_study(options: Namespace) -> int:
    check_named_files(options)

    from . import progress

    with progress.starting(options.quiet, "looking at the images"):
        from edsr.study import StudyConfig, check_report, run_study, write_report
    check_report()
    config = StudyConfig(
        tuple(options.data),
        options.out,
        options.test,
        options.budget,
        options.steps,
        options.claims,
        options.device,
        options.threads,
        options.jobs,
    )
    try:
        with progress.counted(options.quiet, "steps") as show:
            study = run_study(config, show)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on where it was") from None
    with progress.starting(options.quiet, "drawing"):
        files = write_report(study)
    if not options.quiet:
        seconds = sum(result["train_seconds"] for result in study.results.values())
        print_result(*map(str, files), f"  {len(study.results)} trainings, {describe_seconds(seconds)} together")
    return 0
