"""The results of the suite, as text, JSON and JUnit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal
from xml.etree import ElementTree

Status = Literal["ok", "fail", "error", "unsupported"]

_SYMBOLS = {"ok": "ok", "fail": "FAIL", "error": "ERROR", "unsupported": "-"}
_ORDER = ("ok", "unsupported", "error", "fail")


@dataclass(frozen=True)
class Result:
    """The outcome of a check with an option.

    Attributes
    ----------
    option : str
        The option that the kernel was called with.
    check : str
        The name of the check.
    dtype : str
    status : {"ok", "fail", "error", "unsupported"}
        "fail" if the kernel's results are wrong, "error" if it raises an error that it should not.
    detail : str
        The reason, in words; empty if it is "ok".
    """

    option: str
    check: str
    dtype: str
    status: Status
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """The results of all checks of a kernel.

    Attributes
    ----------
    kernel, cell : str
    results : tuple of Result
    """

    kernel: str
    cell: str
    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed; a missing option is not a failure."""
        return all(r.status in ("ok", "unsupported") for r in self.results)

    @property
    def failures(self) -> tuple[Result, ...]:
        """The results of the checks that failed."""
        return tuple(r for r in self.results if r.status in ("fail", "error"))

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """The header, and a row for each option with the worst outcome of each check."""
        options, checks = (list(dict.fromkeys(getattr(r, name) for r in self.results)) for name in ("option", "check"))
        rows = []
        for option in options:
            row = [option]
            for check in checks:
                found = [r.status for r in self.results if (r.option, r.check) == (option, check)]
                row.append(_SYMBOLS[max(found, key=_ORDER.index)] if found else "")
            rows.append(row)
        return ["", *checks], rows

    def text(self) -> str:
        """A table of options and checks, then the reasons for failures and the unsupported options."""
        header, rows = self._table()
        lines = [header, *rows]
        widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
        padded = ["  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)) for line in lines]
        table = "\n".join(line.rstrip() for line in padded)
        notes = [
            f"{_SYMBOLS[r.status]:<5} {r.option}, {r.check}, {r.dtype}: {r.detail}"
            for status in ("fail", "error", "unsupported")
            for r in _once(self.results)
            if r.status == status
        ]
        outcome = "passed" if self.passed else f"{len(self.failures)} checks failed"
        return "\n\n".join([f"{self.kernel}, {self.cell}: {outcome}", table, *(["\n".join(notes)] if notes else [])])

    def json(self) -> str:
        """An object with the kernel, the cell, whether it passed, and the list of results."""
        content = {"kernel": self.kernel, "cell": self.cell, "passed": self.passed}
        return json.dumps({**content, "results": [asdict(r) for r in self.results]}, indent=1)

    def junit(self) -> str:
        """A test suite in JUnit's XML, with a test for each result; unsupported options are skipped tests."""
        return _xml(ElementTree.tostring(self._suite(), encoding="unicode"))

    def _suite(self) -> ElementTree.Element:
        counts = {s: str(sum(r.status == s for r in self.results)) for s in _ORDER}
        suite = ElementTree.Element(
            "testsuite", name=f"{self.kernel}.{self.cell}", tests=str(len(self.results)), failures=counts["fail"],
            errors=counts["error"], skipped=counts["unsupported"],
        )  # fmt: skip
        for r in self.results:
            case = ElementTree.SubElement(
                suite, "testcase", classname=f"{self.kernel}.{self.cell}", name=f"{r.option}, {r.check}, {r.dtype}"
            )
            tag = {"fail": "failure", "error": "error", "unsupported": "skipped"}.get(r.status)
            if tag is not None:
                ElementTree.SubElement(case, tag, message=_printable(r.detail))
        return suite


def _xml(body: str) -> str:
    return f'<?xml version="1.0" encoding="utf-8"?>\n{body}'


def _printable(text: str) -> str:
    """Replace the characters that XML does not allow."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def _once(results: Sequence[Result]) -> list[Result]:
    """Leave out unsupported options whose reason has already been given."""
    seen: set[tuple[str, ...]] = set()
    kept = []
    for r in results:
        key = (r.detail,) if r.status == "unsupported" else (r.option, r.check, r.dtype)
        if key not in seen:
            seen.add(key)
            kept.append(r)
    return kept


def joined(reports: Sequence[Report], form: str) -> str:
    """Join several reports in one form: "text", "json" or "junit"."""
    if form == "text":
        return "\n\n\n".join(report.text() for report in reports)
    if form == "json":
        return reports[0].json() if len(reports) == 1 else f"[{', '.join(report.json() for report in reports)}]"
    suites = ElementTree.Element("testsuites")
    suites.extend(report._suite() for report in reports)
    return _xml(ElementTree.tostring(suites, encoding="unicode"))
