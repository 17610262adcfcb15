"""Counts the test cases in the XML reports below folders of Bazel's test logs.

Prints `PASSED FAILED SKIPPED` on stdout; on stderr the skipped cases, those of a target
with one reason in a line, and after them every failed case.
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
    counts: collections.Counter[str] = collections.Counter()
    skipped: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    failed = []
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
                outcome, message = outcome_of(case, reasons)
                reason = " ".join((message or "no reason").split())
                counts[outcome] += 1
                name = f"{case.get('classname', '')}.{case.get('name')}"
                target = f"//{report.parent.relative_to(logs)}"
                if outcome == "skipped":
                    skipped[target, reason].append(name)
                elif outcome == "failed":
                    failed.append(f"{target} {name}: {reason[:400]}")
    for (target, reason), names in skipped.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        print(f"skipped: {target} {names[0]}{more}: {reason}", file=sys.stderr)
    for failure in failed:
        print(f"failed: {failure}", file=sys.stderr)
    print(counts["passed"], counts["failed"], counts["skipped"])


if __name__ == "__main__":
    main()
