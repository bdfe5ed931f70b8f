"""Texts of strangers in pages."""

import html

from fastderp.util.text import html_text, one_line


def test_a_text_is_escaped_for_html_as_the_standard_library_does() -> None:
    text = "<b class=\"x\">&amp; 'y' é</b>"
    assert html_text(text) == html.escape(text)


def test_one_line_keeps_a_text_that_can_be_printed_and_escapes_the_rest() -> None:
    assert one_line("key file /ü/x: no") == "key file /ü/x: no"
    assert one_line("a\n\x1b[31m\udcff" + "b" * 200) == r"a\n\x1b[31m\udcff" + "b" * 200
