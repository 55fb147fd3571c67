"""Launches that a language's own host code makes, on the simulator instead of a GPU."""

import contextlib
from dataclasses import dataclass, field
from typing import List, Optional

from . import _check
from ._check import Settings
from ._report import Report


@dataclass
class Recorder:
    """What runs the launches of a `with` statement, and collects their reports."""

    settings: Settings
    reports: List[Report] = field(default_factory=list)
    #: False while launches only try variants of a kernel, whose results are not kept.
    write_back: bool = True

    def check(self, ptx, entry, grid, block, args, **options) -> Report:
        settings = {name: getattr(self.settings, name) for name in Settings.__dataclass_fields__}
        options.setdefault("write_back", self.write_back)
        report = _check.check(ptx, entry, grid, block, args, **settings, **options)
        self.reports.append(report)
        return report

    @property
    def report(self) -> Report:
        """One report of all launches."""
        return Report._join(self.reports)


#: The recorder of the innermost `with` statement.
_active: List[Recorder] = []


@contextlib.contextmanager
def recording(settings: Optional[Settings]):
    recorder = Recorder(settings or Settings())
    _active.append(recorder)
    try:
        yield recorder
    finally:
        _active.remove(recorder)


def active() -> Recorder:
    return _active[-1]
