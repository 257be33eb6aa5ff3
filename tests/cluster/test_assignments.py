"""Who gets which file; nobody holds the list."""

import itertools
from pathlib import Path

import pytest

from edsr.batch import Job
from edsr.cluster.assignments import Assignments


def jobs(count=None):
    for i in range(count) if count is not None else itertools.count():
        yield Job(Path(f"{i}.png"), Path(f"out/{i}.png"))


def names(tasks):
    return [task.job.source.stem for task in tasks]


def test_of_an_endless_list_no_more_is_known_than_is_at_work():
    asked = 0

    def counted():
        nonlocal asked
        for job in jobs():
            asked += 1
            yield job

    files = Assignments(counted())
    for _ in range(5):
        for worker in "ab":
            files.take(worker, 3)
    assert asked == 6 and not files.finished
    files.done("a", files.at_work("a")[0])
    assert files.take("b", 3) is None and files.take("a", 3) is not None and asked == 7


def test_each_file_is_done_once():
    files, done = Assignments(jobs(5)), []
    while not files.finished:
        for worker in "ab":
            if (task := files.take(worker, 1)) is not None:
                done.append(task)
        for worker in "ab":
            for task in files.at_work(worker):
                files.done(worker, task)
    assert names(done) == list("01234")


def test_files_of_a_lost_worker_go_to_others_one_at_a_time():
    files = Assignments(jobs(7))
    for _ in range(3):
        files.take("a", 3), files.take("b", 2)
    assert names(files.at_work("a")) == ["0", "2", "4"] and names(files.at_work("b")) == ["1", "3"]
    assert files.lost("a", blame=True) == []
    assert files.take("b", 2) is None  # is given nothing more until it is free for a suspect
    for task in files.at_work("b"):
        files.done("b", task)
    assert names([files.take("b", 2)]) == ["0"] and files.take("b", 2) is None
    assert names([files.take("c", 2)]) == ["2"]
    files.done("b", files.at_work("b")[0])
    assert names([files.take("b", 2)]) == ["4"]
    files.done("b", files.at_work("b")[0])
    others = [files.take("b", 2), files.take("b", 2)]
    assert names(others) == ["5", "6"] and not any(task.again for task in others)
    assert all(task.again for task in files.at_work("c"))


@pytest.mark.parametrize(("blame", "given_up"), [([1, 1, 1], True), ([1, 1, 0, 0, 0], False), ([0, 1, 0, 1, 1], True)])
def test_a_file_that_kills_three_workers_is_given_up(blame, given_up):
    files = Assignments(jobs(1))
    for i, one in enumerate(blame):
        assert names([files.take(i, 4)]) == ["0"]
        assert names(files.lost(i, bool(one))) == (["0"] if given_up and i == len(blame) - 1 else [])
    assert files.take("last", 4) is None if given_up else names([files.take("last", 4)]) == ["0"]
    assert files.finished is given_up


def test_a_worker_that_had_nothing_is_lost():
    files = Assignments(jobs(0))
    assert files.lost("a", True) == [] and files.take("a", 1) is None and files.finished
