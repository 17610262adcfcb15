"""Counts the test cases in the XML reports below folders of Bazel's test logs.

Prints `PASSED FAILED SKIPPED` on stdout, and every failed and skipped case with its
reason on stderr.
"""

import collections
import pathlib
import re
import sys
from xml.etree import ElementTree


def skip_reasons(log: pathlib.Path) -> dict[str, str]:
    """Returns absltest's reasons by Class.test: its XML reports have none."""
    text = log.read_text(errors="replace")
    return dict(re.findall(r"^\[  SKIPPED \] (.+?) - (.*)$", text, re.MULTILINE))


def outcome_of(
    case: ElementTree.Element, reasons: dict[str, str]
) -> tuple[str, str | None]:
    """Returns "passed", "failed" or "skipped", and the reason."""
    problem = case.find("failure")
    problem = case.find("error") if problem is None else problem
    skipped = case.find("skipped")
    if problem is not None:
        return "failed", problem.get("message")
    if skipped is not None:
        return "skipped", skipped.get("message")
    if case.get("result") == "suppressed":
        suite = case.get("classname", "").rpartition(".")[2]
        return "skipped", reasons.get(f"{suite}.{case.get('name')}")
    return "passed", None


def main() -> None:
    counts = collections.Counter()
    # Several test commands may have left their reports in the same folder.
    for folder in dict.fromkeys(sys.argv[1:]):
        # bazel-testlogs is a symbolic link, which rglob does not follow.
        logs = pathlib.Path(folder).resolve()
        reports = sorted(logs.rglob("test.xml"))
        if not reports:
            sys.exit(f"no test.xml below {folder}: no test ran")
        for report in reports:
            reasons = skip_reasons(report.with_name("test.log"))
            for case in ElementTree.parse(report).iter("testcase"):
                outcome, reason = outcome_of(case, reasons)
                counts[outcome] += 1
                if outcome != "passed":
                    name = f"{case.get('classname', '')}.{case.get('name')}"
                    target = report.parent.relative_to(logs)
                    print(f"{outcome}: //{target} {name}: {reason}", file=sys.stderr)
    print(counts["passed"], counts["failed"], counts["skipped"])


if __name__ == "__main__":
    main()
