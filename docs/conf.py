"""The documentation site: `sphinx-build -W docs build/site`.

The references of flags, metrics and the API are generated from the code at every build.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes

import fastderp
from fastderp.cli.bench import help_text as bench_help
from fastderp.cli.flag_table import flag_table
from fastderp.server.observe.metrics import METRICS

HERE = Path(__file__).parent

project = "fastderp"
author = "the fastderp developers"
copyright = author
release = version = fastderp.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "README.md"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"fastderp {release}"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_theme_options = {"source_repository": "https://github.com/fastderp/fastderp"}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "undoc-members": False}
# Citations such as PROTOCOL §3.2 stay text; links into the tree lead nowhere on the site.
suppress_warnings = ["myst.xref_missing", "myst.header", "misc.highlighting_failure"]
# Characters of code that fit into a line of a narrow screen.
LONG_CODE = 32


def flags_page() -> str:
    """Return the reference of `fastderp-relay`'s flags, by group."""
    lines = [
        "# Flags of fastderp-relay",
        "",
        "Generated from the command's own table. Flags take one dash or two, and `-flag value` or `-flag=value`.",
    ]
    return "\n".join([*lines, *flags_by_group("##")])


def flags_by_group(heading: str) -> list[str]:
    lines = []
    group = None
    for flag in flag_table({"HOME": "/root"}):
        if flag.group != group:
            group = flag.group
            lines += ["", f"{heading} {group}", ""]
        default = f" (default `{flag.default}`)" if flag.default else ""
        lines += [
            f"`-{flag.name} {flag.metavar}`".replace(" `", "`"),
            f": {flag.help}{default}",
            "",
        ]
    return lines


def bench_page() -> str:
    """Return the reference of `fastderp-bench`, its own help."""
    return "\n".join(
        [
            "# fastderp-bench",
            "",
            "Generated from the command's own help. [Benchmarks](benchmarks.md) has the method.",
            *bench_help_block(),
        ]
    )


def bench_help_block() -> list[str]:
    os.environ["COLUMNS"] = "78"
    return ["", "```text", bench_help().rstrip(), "```", ""]


def metrics_page() -> str:
    """Return the reference of the metrics."""
    lines = [
        "# Metrics",
        "",
        "Generated from the table of metrics. `/debug/varz` shows them for Prometheus, `/debug/vars` as JSON.",
        "",
    ]
    for metric in sorted(METRICS, key=lambda metric: metric.name):
        labels = f" by {', '.join(f'`{name}`' for name in metric.labels)}" if metric.labels else ""
        lines += [f"`{metric.name}` ({metric.kind}{labels})", f": {metric.help}", ""]
    return "\n".join([*lines, ""])


def api_page() -> str:
    """Return the reference of everything the package exports, and of its two public modules."""
    lines = ["# API reference", "", "Generated from the docstrings.", ""]
    for name in sorted(fastderp.__all__):
        value = getattr(fastderp, name)
        kind = (
            "autoclass"
            if isinstance(value, type)
            else "autofunction"
            if callable(value)
            else "autodata"
        )
        lines += [f"## {name}", "", "```{eval-rst}", f".. {kind}:: fastderp.{name}", "```", ""]
    for name in ("fastderp.client.stun", "fastderp.testing"):
        directive = [f".. automodule:: {name}", "   :members:"]
        lines += [f"## {name}", "", "```{eval-rst}", *directive, "```", ""]
    return "\n".join(lines)


def write_references(_: Any) -> None:
    """Write the generated pages, if they have changed."""
    pages = {
        "flags": flags_page(),
        "metrics": metrics_page(),
        "api": api_page(),
        "bench": bench_page(),
    }
    for name, text in pages.items():
        path = HERE / f"{name}.md"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def as_restructured_text(
    _app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]
) -> None:
    """Turn a docstring's `code` and indented examples into what reStructuredText takes for them."""
    if re.fullmatch(r"Alias for field number \d+\s*", " ".join(lines)):
        lines.clear()  # Python's own text for the fields of a NamedTuple
        return
    result: list[str] = []
    paragraph = ""
    for line in lines:
        starts_block = line.startswith("    ") and result and not result[-1]
        if starts_block and paragraph and not paragraph.startswith(" ") and paragraph[-1] != ":":
            result += ["::", ""]
        result.append(re.sub(r"(?<!`)`([^`\n]+)`(?!`)", r"``\1``", line))
        paragraph = line or paragraph
    lines[:] = result


def plain_signature(
    _app: Any,
    _what: str,
    _name: str,
    _object: Any,
    _options: Any,
    signature: str | None,
    returns: Any,
) -> tuple[str, Any] | None:
    """Write the default of a dataclass's factory as `...`, so that Sphinx can read the signature."""
    if signature is None or "<factory>" not in signature:
        return None
    return signature.replace("<factory>", "..."), returns


def mark_long_code(_app: Any, document: Any, _name: str) -> None:
    """Give code with a part of more than LONG_CODE characters a class; site.css lets only it break."""
    for code in document.findall(nodes.literal):
        if any(len(part) > LONG_CODE for part in code.astext().split()):
            code["classes"].append("long")


def setup(app: Any) -> None:
    """Generate the references before the documents are read."""
    app.connect("builder-inited", write_references)
    # Before napoleon, which takes the text in front of a colon for a type.
    app.connect("autodoc-process-docstring", as_restructured_text, priority=100)
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("doctree-resolved", mark_long_code)
