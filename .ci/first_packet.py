"""From nothing but Python to the first packet: install a wheel, start `fastderp-relay --dev`, talk through it.

    python first_packet.py WHEEL

Makes a fresh environment in which no compiler is found, runs the README's program beside the relay, and
prints how long each step took. As root, relay and program get a network of their own, where the
port is free.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
BUDGET_S = 20


def program() -> str:
    """Return the README's program for two clients."""
    [found] = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.M | re.S)
    return found


def install(wheel: str, folder: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    bare = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX")}
    bare |= {"PATH": f"{folder}/bin", "CC": "/nonexistent"}
    pip = [f"{folder}/bin/pip", "install", "-q", "--only-binary", ":all:", wheel]
    subprocess.run(pip, check=True, env=bare)


def exchange(folder: str) -> None:
    """Run the relay, and the program until it ends; print what both say."""
    relay = subprocess.Popen(
        [f"{folder}/bin/fastderp-relay", "--dev"], stderr=subprocess.PIPE, text=True
    )
    assert relay.stderr is not None
    for line in relay.stderr:
        print(f"  {line.strip()}", flush=True)
        if "ready" in line:
            break
    python = [f"{folder}/bin/python", "-c", program()]
    # Not in the checkout, whose modules would be imported instead of the wheel's.
    done = subprocess.run(python, capture_output=True, text=True, timeout=60, cwd=folder)
    relay.send_signal(signal.SIGTERM)
    code = relay.wait(20)
    print(f"  {done.stdout.strip()}", flush=True)
    assert done.returncode == 0 and "hello" in done.stdout, done.stderr
    assert code == 0, f"fastderp-relay ended with {code}"


def main(wheel: str) -> int:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        install(wheel, folder)
        installed = time.monotonic()
        here = [sys.executable, __file__, "--exchange", folder]
        alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        subprocess.run([*alone, *here] if os.geteuid() == 0 else here, check=True)
    ended = time.monotonic()
    print(
        f"{ended - begun:.1f} s from an empty environment to the packet: install "
        f"{installed - begun:.1f} s, relay and two clients {ended - installed:.1f} s "
        f"(budget {BUDGET_S} s on an idle machine)"
    )
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--exchange":
        exchange(sys.argv[2])
    else:
        sys.exit(main(sys.argv[1]))
