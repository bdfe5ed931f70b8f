"""The frame and the style of the relay's HTML documents.

The security policy allows no inline style, so the style sheet is a separate page.
"""

from __future__ import annotations

from fastderp.util.text import html_text

STYLE_PATH = "/derp.css"

# A row of the table of clients is a list on a narrow screen, with the names of its cells.
STYLE = b"""\
:root { color-scheme: light dark; --ink: #1d2430; --dim: #5c6675; --paper: #fbfbf9;
  --line: #dfe2e6; --mark: #2a6f5e }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ec; --dim: #97a1b0; --paper: #14171c; --line: #2c323b; --mark: #6cc3ab }
}
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 17px/1.6 system-ui, sans-serif }
main { max-width: 34rem; margin: 14vh auto 4rem; padding: 0 1.5rem }
h1 { margin: 0 0 .2em; font-size: 2.6rem; letter-spacing: .06em; color: var(--mark) }
.host { margin: 0 0 2rem; padding-bottom: 1.2rem; border-bottom: 1px solid var(--line);
  color: var(--dim) }
.status { font-weight: 600 }
a { color: var(--mark) }
footer { margin-top: 2.5rem; font-size: .85rem; color: var(--dim) }
.debug { max-width: 84rem; margin: 2rem auto; font-size: 15px }
.debug h1 { font-size: 1.7rem; line-height: 1.3; letter-spacing: 0; overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.5rem }
dt { color: var(--dim) }
dd { margin: 0; overflow-wrap: anywhere }
form { display: flex; flex-wrap: wrap; align-items: center; gap: .3rem .8rem; margin: .6rem 0 }
label { flex: 0 0 7rem; color: var(--dim) }
input { flex: 0 1 36rem; min-width: 0 }
input, button { padding: .3rem .6rem; border: 1px solid var(--line); border-radius: 4px;
  background: none; color: inherit; font: inherit }
button { color: var(--mark) }
table { width: 100%; border-collapse: collapse; font: 13px/1.5 ui-monospace, monospace }
th, td { padding: .3rem .5rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top }
th { color: var(--dim); font-weight: 600 }
td { overflow-wrap: anywhere }
.key { min-width: 24ch }
.remote { min-width: 21ch }
.number { text-align: right }
td.number { white-space: nowrap }
@media (max-width: 84rem) {
  table, thead, tbody { display: block }
  tr { display: grid; grid-template-columns: max-content 1fr; padding: .6rem 0;
    border-bottom: 1px solid var(--line) }
  thead tr { display: flex; flex-wrap: wrap }
  thead tr::before { content: "sort by"; padding: .2rem .5rem .2rem 0; color: var(--dim) }
  th, td { border: 0; padding: .2rem .5rem .2rem 0 }
  th:not(:has(a)), td:empty { display: none }
  td { display: grid; grid-template-columns: subgrid; grid-column: 1 / 3; gap: 1rem }
  td::before { content: attr(data-name); color: var(--dim) }
  .key, .remote { min-width: 0 }
  .number { text-align: left }
}
"""


def document(title: str, body: str, prefix: str = "", *, kind: str = "") -> bytes:
    """Return an HTML document.

    Args:
        title: plain text.
        body: HTML.
        prefix: the beginning of links, "" or "/x".
        kind: the class of the document's style; "" for the default.
    """
    main = f"<main class={kind}>" if kind else "<main>"
    return f"""<!doctype html>
<html lang=en>
<head>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<title>{html_text(title)}</title>
<link rel=stylesheet href={prefix}{STYLE_PATH}>
</head>
<body>
{main}
{body}
</main>
</body>
</html>
""".encode()
