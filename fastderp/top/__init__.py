"""The live view of a running relay, the parts of `fastderp-relay top`.

`pages` requests the relay's debug pages, `figures` turns two answers into rates, `view` writes these
as lines, `terminal` shows lines on a screen and reads keys, `live` combines them.
"""
