"""What all benchmarks under pytest share: rows, the longer run, the closing summary."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console

from bench.machine import describe, machine_line
from bench.rounds import Group, Turns, play, table

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
USUAL = Turns(seconds=8.0, least=3, most=10)  # all groups in less than five minutes on two cores
LONG = Turns(seconds=90.0, least=3, most=15)
UNTIMED = Turns(seconds=0.0, least=1, most=1)  # --benchmark-disable: whether it runs and is right
Measure = Callable[[tuple[str, ...], Turns], Group]
long = pytest.mark.long
_groups = pytest.StashKey[dict[tuple, Group]]()


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--benchmark-long",
        action="store_true",
        help="also large pictures and ways that take minutes to make ready, and more rounds: an hour",
    )


def pytest_configure(config) -> None:
    config.addinivalue_line("markers", "long: a benchmark for --benchmark-long alone")
    config.stash[_groups] = {}


def pytest_collection_modifyitems(config, items) -> None:
    if in_long(config):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="with --benchmark-long alone"))


def in_long(config) -> bool:
    """pytest only knows an option of this file where its command line, or `testpaths`, names this folder."""
    return config.getoption("--benchmark-long", False)


def pytest_report_header() -> str:
    return f"machine: {machine_line(describe(DEVICES[-1]))}"


@pytest.hookimpl(trylast=True)  # below pytest-benchmark's table
def pytest_terminal_summary(terminalreporter, config) -> None:
    groups = config.stash[_groups].values()
    if not groups:
        return
    terminalreporter.section("benchmarks: ratios of rounds in turns, and shares of the machine's ceiling")
    console = Console(file=terminalreporter._tw._file, width=120, markup=False, highlight=False, no_color=True)
    for group in groups:
        console.print(table(group))


@pytest.fixture(scope="session", params=DEVICES)
def device(request) -> str:
    return request.param


@pytest.fixture
def row(request, benchmark) -> Callable[[Measure], dict[str, Any]]:
    """row(measure): the test's row, of the way that its parameter `name` says; returns what is known about it.

    Tests that differ by `name` alone are a group. The first of them has all that were selected measured.
    """
    node, groups = request.node, request.config.stash[_groups]

    def key(item) -> tuple:
        return item.function, *sorted((k, v) for k, v in item.callspec.params.items() if k != "name")

    def row(measure: Measure) -> dict[str, Any]:
        if key(node) not in groups:
            like = [item for item in request.session.items if getattr(item, "function", None) is node.function]
            chosen = [item for item in like if key(item) == key(node) and not item.get_closest_marker("skip")]
            turns = LONG if in_long(request.config) else USUAL
            names = tuple(item.callspec.params["name"] for item in chosen)
            groups[key(node)] = measure(names, turns if benchmark.enabled else UNTIMED)
        group, name = groups[key(node)], node.callspec.params["name"]
        benchmark.group = group.name
        if name in group.skipped or name in group.wrong:
            benchmark.skipped = True  # else it warns that it was not used
        if name in group.skipped:
            pytest.skip(group.skipped[name])
        if name in group.wrong:
            pytest.fail(group.wrong[name], pytrace=False)
        play(benchmark, group.seconds[name])
        benchmark.extra_info.update(group.info[name])
        return group.info[name]

    return row
