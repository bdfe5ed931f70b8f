"""Fail a test run that proved nothing: no tests, or a part of the suite that skipped itself altogether."""

import argparse
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter


def passed_by_part(report: str) -> Counter[str]:
    """Count the passed tests of a JUnit report by the directory below tests/."""
    passed: Counter[str] = Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        if not any(child.tag in ("skipped", "failure", "error") for child in case):
            passed[case.get("classname", "").split(".")[1]] += 1
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", help="JUnit XML written by pytest")
    parser.add_argument(
        "--must-run", nargs="+", default=[], metavar="PART", help="directories below tests/"
    )
    options = parser.parse_args()
    passed = passed_by_part(options.report)
    print("passed: " + ", ".join(f"{part} {n}" for part, n in sorted(passed.items())))
    idle = [part for part in options.must_run if not passed[part]]
    if idle:
        print("no test passed in: " + ", ".join(idle), file=sys.stderr)
    return 1 if idle or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
