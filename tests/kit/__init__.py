"""What the tests share: a relay in a thread, clients that speak DERP by bytes, waiting without sleeping."""
