"""What all benchmarks under pytest share: rows, the longer run, the closing summary."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.machine import describe, machine_line
from bench.rounds import Group, Turns, play, summary

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
USUAL = Turns(seconds=12.0, least=3, most=10)  # all groups in less than five minutes on two cores
LONG = Turns(seconds=90.0, least=3, most=15)
UNTIMED = Turns(seconds=0.0, least=1, most=1)  # --benchmark-disable: whether it runs and is right
Measure = Callable[[tuple[str, ...], Turns], Group]
LAST_START = 240.0  # seconds after which no group is begun but in a longer run: a slow machine ends in time, too
long = pytest.mark.skipif("not config.getoption('--benchmark-long', False)", reason="only with --benchmark-long")
_groups = pytest.StashKey[dict[tuple, Group]]()
_began = pytest.StashKey[float]()


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--benchmark-long",
        action="store_true",
        help="also large images and ways that take minutes to make ready, and more rounds: an hour at least",
    )


def pytest_configure(config) -> None:
    config.stash[_groups], config.stash[_began] = {}, time.monotonic()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items) -> None:
    """The whole network first: what there is no time left for comes after it."""
    items.sort(key=lambda item: item.path != Path(__file__).with_name("test_model.py"))


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
    for group in groups:
        terminalreporter.write_line(summary(group))


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

    def selected() -> tuple[str, ...]:
        """The group's ways that this run is to measure."""
        items = [item for item in request.session.items if getattr(item, "function", None) is node.function]
        left_out = set() if in_long(request.config) else {item for item in items if long.mark in item.own_markers}
        return tuple(i.callspec.params["name"] for i in items if i not in left_out and key(i) == key(node))

    def row(measure: Measure) -> dict[str, Any]:
        if key(node) not in groups:
            turns = UNTIMED if benchmark.disabled else LONG if in_long(request.config) else USUAL
            if turns == USUAL and time.monotonic() - request.config.stash[_began] > LAST_START:
                pytest.skip("no time left within five minutes; alone (-k) or with --benchmark-long there is")
            groups[key(node)] = measure(selected(), turns)
        group, name = groups[key(node)], node.callspec.params["name"]
        benchmark.group = group.name
        if name in group.skipped:
            pytest.skip(group.skipped[name])
        if name in group.incorrect:
            pytest.fail(group.incorrect[name], pytrace=False)
        play(benchmark, group.seconds[name])
        benchmark.extra_info.update(group.info[name])
        return group.info[name]

    return row
