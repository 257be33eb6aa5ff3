"""Records of what was measured: a file for a machine, a day and a kind, into which every command of that day merges.

A record of work has an entry for each piece of it, and an entry has a case for each way to do it. A case says in which
`run` it was measured, the start of a command, and in which `turns`: cases that have these in common were timed in
turns, so that their ratio holds whatever else the machine did. `turns` is None for a single sample, taken when a case
was found right and before there were any rounds. Records older than that have neither, and are of one run each.
"""

import json
import os
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.machine import Ceiling, slug

RESULTS = Path(__file__).with_name("results")
NOTES = ("incorrect", "skipped")  # of an entry: reasons, by case


def now() -> str:
    """The time, to tell runs and turns from each other."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass
class Measured:
    """What is known so far about a piece of work.

    failed, incorrect, skipped: reasons, by case; failed are parts that died. runs: cases found right. rounds: seconds
    of each, round by round.
    """

    work: Any
    failed: dict[str, str]
    ceiling: Ceiling | None = None
    runs: dict[str, Any] = field(default_factory=dict)
    incorrect: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    rounds: dict[str, list[float]] = field(default_factory=dict)
    turns: str = field(default_factory=now)

    @property
    def ceilings(self) -> dict[str, float]:
        """As an entry has them; 0 is not known."""
        names = ("gflops", "gbs")
        return {name: round(getattr(self.ceiling, name), 1) if self.ceiling else 0.0 for name in names}

    def logged(self, entry: dict[str, Any], cases: dict[str, dict]) -> dict[str, Any]:
        """The entry with its cases and the reasons why others are missing."""
        entry |= {"cases": cases, "skipped": dict(self.skipped), "incorrect": self.failed | self.incorrect}
        return entry | ({"failed": sorted(self.failed)} if self.failed else {})


class Record:
    """What a command has found so far. With `kept` it is on file at any moment, merged with what that day had."""

    def __init__(self, kind: str, machine: dict, kept: bool):
        self.content: dict[str, Any] = {"kind": kind, "machine": machine, "run": now(), "workloads": []}
        self._kept = kept

    def put(self, entry: dict) -> None:
        """Adds what is known about a piece of work, in the place of what was."""
        for case in entry["cases"].values():
            case["run"] = self.content["run"]
        add_entry(self.content["workloads"], deepcopy(entry))
        self.keep()

    def fail(self, work: str, why: str) -> None:
        """Notes that a piece of work could not be done at all."""
        self.content.setdefault("failed", {})[work] = why
        self.keep()

    def missed(self, work: str, names: tuple[str, ...]) -> None:
        """Notes that there was no time left for cases of a piece of work; those that were done are left out."""
        left = [name for name in names if name not in _known(self.content["workloads"], work)]
        if left:
            self.content.setdefault("not_reached", []).append(f"{work}: {', '.join(left)}")

    def keep(self) -> Path | None:
        return save(self.content) if self._kept else None

    @property
    def bad(self) -> bool:
        """Whether anything was wrong or could not be done."""
        return "failed" in self.content or any(entry["incorrect"] for entry in self.content["workloads"])


def path_of(record: dict) -> Path:
    kind = "" if record["kind"] == "gpu" else f"-{record['kind']}"
    return RESULTS / f"{slug(record['machine']['name'])}-{record['machine']['date']}{kind}.json"


def read(path: Path) -> dict:
    """A record from its file. What is "incorrect" was called "wrong" in records of 2026-11-26 and before."""
    record = json.loads(path.read_text(encoding="utf-8"))
    for part in (record, *record.get("workloads", ())):
        if "wrong" in part:
            part["incorrect"] = part.pop("wrong")
    return record


def save(record: dict) -> Path:
    """Writes a record under its machine, date and, unless of a GPU, kind.

    One of work is merged into what the file has; any other takes its place.
    """
    path = path_of(record)
    if "workloads" in record and path.exists():
        record = merged(read(path), record)
    RESULTS.mkdir(exist_ok=True)
    write_whole(path, json.dumps(record, indent=1) + "\n")
    return path


def merged(before: dict, after: dict) -> dict:
    """Two records of one day as one: of each case the newest measurement, and the earlier ones beside it."""
    works = deepcopy(before["workloads"])
    for entry in after["workloads"]:
        add_entry(works, entry)
    whole = before | after | {"workloads": works}
    done = {entry["work"] for entry in after["workloads"] if entry["cases"]}
    failed = {work: why for work, why in before.get("failed", {}).items() if work not in done} | after.get("failed", {})
    missing: dict[str, dict[str, None]] = {}
    for line in before.get("not_reached", []) + after.get("not_reached", []):
        work, _, names = line.partition(": ")
        known = _known(works, work)
        if left := [name for name in names.split(", ") if name not in known]:
            missing.setdefault(work, {}).update(dict.fromkeys(left))
    missed = [f"{work}: {', '.join(names)}" for work, names in missing.items()]
    for name, value in (("failed", failed), ("not_reached", missed)):
        whole.pop(name, None)
        if value:
            whole[name] = value
    return whole


def _known(entries: list[dict], work: str) -> set[str]:
    """Cases of which an entry says something."""
    found = [entry for entry in entries if entry["work"] == work]
    return {name for entry in found for part in ("cases", *NOTES) for name in entry[part]}


def add_entry(entries: list[dict], entry: dict) -> None:
    """Adds an entry, merged with an earlier one about the same work, case by case."""
    for i, earlier in enumerate(entries):
        if earlier["work"] == entry["work"]:
            entries[i] = _merged_entry(earlier, entry)
            return
    entries.append(entry)


def _merged_entry(before: dict, after: dict) -> dict:
    """Of each case what was measured last; but figures of rounds are not given up for a single sample.

    What was found wrong has no figures any more. A case that only died, or for which memory was missing this
    time, keeps those it had. "earlier" holds what other runs measured, which ratios may need.
    """
    incorrect = after["incorrect"].keys() - set(after.get("failed", ()))
    cases = {name: case for name, case in before["cases"].items() if name not in incorrect}
    earlier = {name: runs for name, runs in before.get("earlier", {}).items() if name not in incorrect}
    for name, case in after["cases"].items():
        old = cases.get(name)
        if old is not None and case.get("turns") is None and old.get("turns", "") is not None:
            continue
        kept = [one for one in earlier.get(name, []) if one.get("run") != case.get("run")]
        if old is not None and old.get("run") != case.get("run"):
            kept = [one for one in kept if one.get("run") != old.get("run")] + [old]
        earlier = earlier | {name: kept} if kept else {key: value for key, value in earlier.items() if key != name}
        cases[name] = case
    notes = {}
    for kind in NOTES:
        others = {name for part in ("cases", *NOTES) for name in after[part]}
        notes[kind] = {name: why for name, why in before[kind].items() if name not in others} | after[kind]
    notes["skipped"] = {name: why for name, why in notes["skipped"].items() if name not in cases}
    failed = {*before.get("failed", ()), *after.get("failed", ())} & notes["incorrect"].keys()
    whole = before | after | {"cases": cases} | notes
    if not after["ceiling"]["gflops"]:  # not known this time
        whole["ceiling"] = before["ceiling"]
    for key, value in (("earlier", earlier), ("failed", sorted(failed))):
        whole.pop(key, None)
        if value:
            whole[key] = value
    return whole


def interleaved(one: dict, other: dict) -> bool:
    """Whether two cases were timed in turns with each other."""
    turns = one.get("turns", ""), other.get("turns", "")
    return turns[0] == turns[1] is not None and one.get("run") == other.get("run")


def write_whole(path: Path, text: str) -> None:
    """Writes a file that at any moment is the old one or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
