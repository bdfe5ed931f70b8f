"""`python -m bench.plot`: the measurements of bench.goals as SVG, beside their JSON.

cost.svg has the CPU time per packet of each relay under each load, delay.svg the median and 99th
percentile of the latency.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.goals import KEPT, Document, noise
from bench.lab import Measurement, cost

COLOURS = {
    "derper": "#8a8f98",
    "derper-1.98": "#6b4f45",
    "floor": "#c9a227",
    "fastderp": "#1f6feb",
    "fastderp-bundled": "#12408f",
}
BAR = 0.8
CAPTION_WIDTH = 110
# loads whose subject is not the packets, or is a relay that starts
LEFT_OUT = ("memory-", "logins")


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=KEPT, help="JSON of bench.goals")
    options = parser.parse_args(arguments)
    try:
        document: Document = json.loads(options.results.read_text())
        loads = by_load(document)
        for name, label, values in (
            ("cost", "CPU µs of the relay per delivered packet", {"": cost}),
            (
                "delay",
                "µs from sender to receiver: median (dark) and p99 (light)",
                {"p50_us": _delay("p50_us"), "p99_us": _delay("p99_us")},
            ),
        ):
            path = options.results.with_name(f"{name}.svg")
            _draw(path, loads, label, values, _caption(document))
            print(path)
    except FileNotFoundError as error:
        return _fail(f"{error.filename}: does not exist; run python -m bench.goals first")
    except ImportError:
        return _fail("matplotlib is not installed: pip install 'fastderp[bench]'")
    return 0


def by_load(document: Document) -> dict[str, dict[str, list[Measurement]]]:
    """Return the measurements by load (with its flags; equal ones share a bar) and relay."""
    loads: dict[str, dict[str, list[Measurement]]] = {}
    for row in document["rows"].values():
        if row["name"] == "workers":  # on two cores: no comparison with the others
            continue
        for result in row["measurements"]:
            load = result["load"].removeprefix("tls/")
            if result["flags"] or load.startswith(LEFT_OUT):
                continue
            relays = loads.setdefault(result["load"], {})
            relays.setdefault(result["relay_name"], []).append(result)
    return loads


def _delay(name: str) -> Any:
    return lambda result: float(result["latency"][name])


def _caption(document: Document) -> str:
    found = document["environment"]
    text = f"{found['cpu']}, Linux {found['kernel']}, {found['when']}. {noise(document)}"
    return textwrap.fill(text, CAPTION_WIDTH)


def _draw(
    path: Path,
    loads: dict[str, dict[str, list[Measurement]]],
    label: str,
    values: dict[str, Any],
    caption: str,
) -> None:
    """Draw bars on a logarithmic axis, with whiskers from the smallest to the largest round."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = path.stem  # the same numbers give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.5 * len(loads)))
    for i, relays in enumerate(loads.values()):
        height = BAR / len(relays)
        # In the order of the legend, which the rounds do not keep.
        names = sorted(relays, key=[*COLOURS, *relays].index)
        for j, (relay, results) in enumerate((name, relays[name]) for name in names):
            # the last value first, so that the smaller bar is drawn over the larger one
            for k, value in enumerate(reversed(values.values())):
                found = [value(result) for result in results]
                median = statistics.median(found)
                axes.barh(
                    i - BAR / 2 + (j + 0.5) * height,
                    median,
                    height,
                    color=COLOURS.get(relay, "#6a4c93"),
                    alpha=1 if k == len(values) - 1 else 0.45,
                    label=relay,
                    xerr=[[median - min(found)], [max(found) - median]],
                    error_kw={"elinewidth": 0.8},
                )
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles.keys(), frameon=False)
    axes.set_yticks(range(len(loads)), list(loads))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(f"{label}\n{caption}", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _fail(text: str) -> int:
    print(f"bench.plot: {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
