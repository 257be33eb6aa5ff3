"""Jobs that are found while the batch runs, and names that follow from a file and what lies beside it."""

import gc
import os
from pathlib import Path

import pytest

from edsr.batch import FailedInput, Job, LazyJobs, can_be_lazy, listing, plan_jobs, settle_name
from edsr.batch.clashes import ignores_case
from edsr.errors import ImageError
from edsr.storage import Url


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def lazy(name, output, *more, **options):
    """Jobs with settled names, and messages."""
    jobs, messages = [], []
    for item in LazyJobs(str(name), Path(output), "x2", *more, **options):
        if isinstance(item, FailedInput):
            messages.append(str(item.error))
            continue
        try:
            jobs.append(settle_name(item, "x2"))
        except ImageError as error:
            messages.append(str(error))
    return sorted(jobs), messages


TREE = ["a.png", "b.jpg", "b.png", "c.JPG", "d.tif", "d.webp", "deep/a.jpg", "deep/er/x.y.png", "e.txt", ".h.png"]
TREE += ["f_x2.png", "g_compare.png", "p.png", "p_640x480.png", "q_640x480.png", "s_w90.jpg", "s.JPEG", "t_jpg_h9.png"]
TREE += ["t.jpg"]


@pytest.mark.parametrize("recursive", [False, True])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("form", [None, "keep", "webp"])
def test_names_are_those_of_one_machine(tmp_path, recursive, again, form):
    touch(tmp_path / "in", *TREE)
    output = f"{tmp_path / 'out'}/"
    plan = plan_jobs([str(tmp_path / "in")], output, "x2", form, recursive, again=again)
    jobs, messages = lazy(tmp_path / "in", output, form, recursive=recursive, again=again)
    if form != "keep" and not again:
        assert jobs == sorted(plan.jobs)
    # Where kinds that clash here keep their own endings there, or results of two runs meet, only the names differ.
    assert [job.source for job in jobs] == [job.source for job in sorted(plan.jobs)] and not messages
    assert len({job.output for job in jobs}) == len(jobs)


def test_what_is_left_out_is_counted(tmp_path):
    touch(tmp_path, *TREE)
    found = LazyJobs(str(tmp_path), Path("out"), "x2")
    assert len(list(found)) == found.found == 10
    assert (found.earlier, found.others, found.closed) == (5, {".txt": 1}, 1)


@pytest.mark.parametrize(
    ("source", "beside", "output"),
    [
        ("a.jpg", [], "a_x2.png"),
        ("a.jpg", ["a.txt", "b.png"], "a_x2.png"),
        ("a.jpg", ["a.png"], "a_jpg_x2.png"),
        ("a.jpg", ["a.HEIC"], "a_jpg_x2.png"),
        ("a_jpg.png", [], "a_jpg_png_x2.png"),  # which would be that of a.jpg beside an a.png
        ("a_b.png", [], "a_b_x2.png"),
        ("jpg.png", [], "jpg_x2.png"),
        ("a.Jpg", [], "a_jpg_x2.png"),
    ],
)
def test_a_name_follows_from_the_file_and_what_lies_beside(tmp_path, source, beside, output):
    touch(tmp_path, source, *beside)
    job = settle_name(Job(tmp_path / source, Path("out") / f"{Path(source).stem}_x2.png", "s", "o/x.png"), "x2")
    assert job.output == Path("out") / output
    assert job.output_label == ("o/x.png" if output == f"{Path(source).stem}_x2.png" else f"o{os.sep}{output}")


@pytest.mark.parametrize("names", [("a.jpg", "a.JPG"), ("a.Jpg", "a.jpg"), ("a.Jpg", "a.JPG", "a.png")])
def test_endings_that_differ_in_case_alone_never_become_one_file(tmp_path, names):
    if ignores_case(str(tmp_path)):
        pytest.skip("there they are one file")
    touch(tmp_path / "in", *names)
    jobs, messages = lazy(tmp_path / "in", "out/")
    assert len({job.output for job in jobs}) == len(jobs) and len(jobs) + len(messages) == len(names)
    assert messages and all("would become the same file" in message for message in messages)


def test_names_that_differ_in_case_where_that_counts_here_and_not_there(tmp_path, monkeypatch):
    if ignores_case(str(tmp_path)):
        pytest.skip("here they are one file")
    touch(tmp_path / "in", "a.png", "A.jpg", "a.webp", "b.png", "sub/a.png", "Sub/a.png")
    monkeypatch.setattr(listing, "ignores_case", lambda folder: folder == "out")
    jobs, messages = lazy(tmp_path / "in", "out", recursive=True)
    assert len({str(job.output).lower() for job in jobs}) == len(jobs) == 6 - len(messages)
    assert messages and all("differs in case alone" in message for message in messages)
    assert len(lazy(tmp_path / "in", "other", recursive=True)[0]) == 6


def test_a_list_mirrors_the_folders_that_it_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "x/a.png", "y/a.png", "y/deep/b.png", "z/c.png", "z/e.txt", "w.png")
    lines = ["x/a.png\r", "", "  y/a.png ", f"{tmp_path}/w.png", "x/../w.png", "z", "gone.png", "*.none"]
    Path("list.txt").write_text("\n".join(lines))
    jobs, messages = lazy("@list.txt", "out")
    below = tmp_path.relative_to(tmp_path.anchor).as_posix()
    want = ["gone_x2.png", "w_x2.png", "x/a_x2.png", "y/a_x2.png", "z/c_x2.png", f"{below}/w_x2.png"]
    assert sorted(job.output.as_posix() for job in jobs) == sorted(f"out/{name}" for name in want)
    assert messages == ["*.none: nothing matches this pattern"]
    assert lazy("@list.txt", "out")[0] == jobs


def test_urls_in_a_list_and_an_output_at_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "x/a.png")
    lines = ["s3://bucket/deep/b.JPG", "s3://bucket/deep/", "x/a.png", "nope://x/a.png"]
    Path("list.txt").write_text("\n".join(lines))
    found = [*LazyJobs("@list.txt", Url.parse("s3://other/out/"), "x2")]
    jobs = [settle_name(item, "x2") for item in found if isinstance(item, Job)]
    assert [str(job.output) for job in jobs] == ["s3://other/out/bucket/deep/b_JPG_x2.png", "s3://other/out/x/a_x2.png"]
    assert "give one alone" in str(found[1].error) and "unknown scheme" in str(found[3].error)
    (job,) = (
        item
        for item in LazyJobs("@list.txt", Path("out"), "x2")
        if isinstance(item, Job) and item.source == jobs[0].source
    )
    assert job.output == Path("out/bucket/deep/b_JPG_x2.png")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_of_lists(tmp_path, monkeypatch, encoding):
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("ä/ö.png\nb.png\n", encoding)
    assert [job.source for job in lazy("@list.txt", "out")[0]] == [Path("b.png"), Path("ä/ö.png")]


@pytest.mark.parametrize(
    ("text", "why"), [(None, "the list cannot be read (No such file"), ("\n \n", "the list names no images")]
)
def test_lists_that_are_none(tmp_path, monkeypatch, text, why):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("list.txt").write_text(text)
    jobs, (message,) = lazy("@list.txt", "out")
    assert not jobs and why in message


def test_folders_without_images(tmp_path):
    touch(tmp_path / "in", "e.txt", "deep/a.png")
    assert "no images in this folder" in lazy(tmp_path / "in", "out")[1][0]
    touch(tmp_path / "done", "a_x2.png")
    assert "--again" in lazy(tmp_path / "done", "out")[1][0] or "again" in lazy(tmp_path / "done", "out")[1][0]


def test_links_are_followed_once(tmp_path):
    touch(tmp_path / "in", "a/x.png", "b/y.png")
    try:
        (tmp_path / "in" / "a" / "up").symlink_to(tmp_path / "in", target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    jobs, _ = lazy(tmp_path / "in", "out", recursive=True)
    assert [job.output.as_posix() for job in jobs] == ["out/a/x_x2.png", "out/b/y_x2.png"]


def test_of_many_names_few_are_held(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("list.txt", "w") as file:
        file.writelines(f"folder{i // 1000}/image{i}.png\n" for i in range(20_000))

    def held():
        return sum(type(one) is type(tmp_path) for one in gc.get_objects())

    before, most = held(), 0
    for count, _ in enumerate(LazyJobs("@list.txt", Path("out"), "x2"), 1):
        if count % 5000 == 0:
            most = max(most, held() - before)
    assert count == 20_000 and most < 50


def test_what_can_be_listed_meanwhile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "in/a.png", "@odd.png")
    names = ["in", "@list.txt", "@odd.png", "in/a.png", "*.png"]
    assert [can_be_lazy(name) for name in names] == [True, True, False, False, False]
