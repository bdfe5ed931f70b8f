"""Only code that shows or compares dates reads the wall clock. RELIABILITY F16."""

import re
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "fastderp"
WALL_CLOCK = re.compile(r"\btime\.time(_ns)?\(|\bdatetime\.(now|utcnow|today)\(|CLOCK_REALTIME")
# module or folder: why it needs the date
DATES = {
    "probing/certificate.py": "the validity of certificates",
    "server/certificates": "the validity of certificates",
    "server/admission/key_lists.py": "the time of a file's last change",
    "server/http/clients.py": "the start of a connection, as a date",
    "server/http/message.py": "the Date header",
    "tls/portable.py": "the validity of certificates",
    "server/observe/process_metrics.py": "the start of the process, as a date",
}


def test_timeouts_deadlines_and_ages_use_the_monotonic_clock() -> None:
    readers = {
        path.relative_to(PACKAGE).as_posix()
        for suffix in ("py", "pyx", "pxi", "pxd")
        for path in PACKAGE.rglob(f"*.{suffix}")
        if WALL_CLOCK.search(path.read_text())
    }
    assert {name for name in readers if not name.startswith(tuple(DATES))} == set()
    assert all(any(name.startswith(date) for name in readers) for date in DATES)
