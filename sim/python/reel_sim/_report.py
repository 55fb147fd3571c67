"""Reports: findings with their places, counts, and files for other tools."""

import json
import os
from dataclasses import dataclass
from typing import List, Optional, Tuple

from . import _native

Coordinates = Tuple[int, int, int]


class InputError(ValueError):
    """The kernel could not be checked: a wrong argument or file, or a kernel that does not end. One line."""


class FindingsError(AssertionError):
    """The kernel has findings. The message lists them; `report` is the report."""

    def __init__(self, report):
        super().__init__(report.text)
        self.report = report


@dataclass(frozen=True)
class Place:
    """An instruction in the source, and the thread that executed it."""

    #: The CUDA or Python file; None if the PTX has no line information.
    file: Optional[str]
    #: The line in `file`, or in the PTX, from 1.
    line: int
    #: The line in the PTX, from 1.
    ptx_line: int
    #: Coordinates of the block and of the thread in it, and the thread's warp in the block; None if unknown.
    block: Optional[Coordinates]
    thread: Optional[Coordinates]
    warp: Optional[int]

    @classmethod
    def _of(cls, fields):
        lists = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        return cls(**lists)


@dataclass(frozen=True)
class Finding:
    """A defect of a kernel."""

    #: `race`, `async-not-waited`, `async-proxy`, `mbarrier`, `deadlock`, `out-of-bounds`, …
    kind: str
    message: str
    #: What to do.
    help: str
    at: Place
    #: The other instruction of a race or of a missing wait or fence.
    other: Optional[Place]
    #: The state space (`global`, `shared`, …) and the address of the first occurrence.
    space: Optional[str]
    address: Optional[int]
    #: Number of occurrences in all interleavings.
    count: int
    #: Whether the finding may follow from another one.
    may_follow: bool


class Report:
    """The report of one launch or of several."""

    def __init__(self, launches):
        self._launches = launches
        #: What the function returned whose kernels were checked, if it is known.
        self.result = None

    @classmethod
    def _of(cls, text, shown, flame_graph):
        return cls([_Launch(text, shown, flame_graph)])

    @classmethod
    def _join(cls, reports):
        return cls([launch for report in reports for launch in report._launches])

    @property
    def findings(self) -> List[Finding]:
        return [finding for launch in self._launches for finding in launch.findings]

    @property
    def ok(self) -> bool:
        """Whether there are no findings."""
        return not self.findings

    @property
    def notes(self) -> List[str]:
        """Remarks that are not defects, among them results that depend on the interleaving."""
        return [note for launch in self._launches for note in launch.json["notes"]]

    @property
    def counts(self) -> dict:
        """What the first run counted: `counted` in total, `lines` by source line, `modelled` least times per GPU."""
        if len(self._launches) != 1:
            raise InputError(f"counts: the report has {len(self._launches)} launches; use `launches`")
        return self._launches[0].json["counters"]

    @property
    def launches(self) -> "List[Report]":
        """A report for each launch."""
        return [Report([launch]) for launch in self._launches]

    @property
    def kernel(self) -> str:
        """The kernel's name; of several launches, the names."""
        return ", ".join(launch.json["kernel"] for launch in self._launches)

    @property
    def json(self) -> dict:
        """The report as `reel-sim run --json` prints it; of several launches, `{"launches": […]}`."""
        documents = [launch.json for launch in self._launches]
        return documents[0] if len(documents) == 1 else {"launches": documents}

    @property
    def text(self) -> str:
        """The report as `reel-sim run` prints it."""
        return "".join(launch.text for launch in self._launches)

    def raise_if_any(self) -> "Report":
        """Raises `FindingsError` if there are findings; else returns the report."""
        if self.findings:
            raise FindingsError(self)
        return self

    def write_sarif(self, path, root=".") -> None:
        """Writes the findings as SARIF 2.1.0; files below the folder `root` are named relative to it."""
        write_sarif([self], path, root)

    def write_speedscope(self, path) -> None:
        """Writes the counts as a flame graph for speedscope."""
        if len(self._launches) != 1:
            raise InputError(f"speedscope: the report has {len(self._launches)} launches; use `launches`")
        _write(path, self._launches[0].flame_graph)

    def __str__(self):
        return self.text

    def __repr__(self):
        return f"<reel_sim.Report of {self.kernel}: {len(self.findings)} findings>"


class _Launch:
    """The report of one launch."""

    def __init__(self, text, shown, flame_graph):
        self.source, self.text, self.flame_graph = text, shown, flame_graph
        self.json = json.loads(text)
        self.findings = [
            Finding(
                kind=f["kind"],
                message=f["message"],
                help=f["help"],
                at=Place._of(f["at"]),
                other=Place._of(f["other"]) if f["other"] else None,
                space=f["space"],
                address=f["address"],
                count=f["count"],
                may_follow=f["may_follow"],
            )
            for f in self.json["findings"]
        ]


def write_sarif(reports, path, root=".") -> None:
    """Writes the findings of reports as one SARIF 2.1.0 document; see `Report.write_sarif`."""
    texts = [launch.source for report in reports for launch in report._launches]
    _write(path, _native.sarif(texts, os.path.abspath(root)))


def _write(path, text):
    part = f"{os.fspath(path)}.part"
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(part, path)
