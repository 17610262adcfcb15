"""Counts the test cases in the XML reports below a folder of Bazel's test logs.

Prints `PASSED FAILED SKIPPED` on stdout, and every failed and skipped case with its
reason on stderr.
"""

import pathlib
import sys
from xml.etree import ElementTree


def main() -> None:
    logs = pathlib.Path(sys.argv[1])
    # bazel-testlogs is a symbolic link, which rglob does not follow.
    reports = sorted(logs.resolve().rglob("test.xml"))
    if not reports:
        sys.exit(f"no test.xml below {logs}: no test ran")
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            problem = case.find("failure")
            problem = case.find("error") if problem is None else problem
            skipped = case.find("skipped")
            if problem is not None:
                outcome, reason = "failed", problem.get("message")
            elif skipped is not None or case.get("result") == "suppressed":
                outcome = "skipped"
                reason = None if skipped is None else skipped.get("message")
            else:
                outcome, reason = "passed", None
            counts[outcome] += 1
            if outcome != "passed":
                name = f"{case.get('classname', '')}.{case.get('name')}"
                target = report.parent.relative_to(logs.resolve())
                print(f"{outcome}: //{target} {name}: {reason}", file=sys.stderr)
    print(*counts.values())


if __name__ == "__main__":
    main()
