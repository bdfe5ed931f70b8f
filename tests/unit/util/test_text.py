"""Texts of strangers in pages."""

import html

from fastderp.util.text import html_text


def test_a_text_is_escaped_for_html_as_the_standard_library_does() -> None:
    text = "<b class=\"x\">&amp; 'y' é</b>"
    assert html_text(text) == html.escape(text)
