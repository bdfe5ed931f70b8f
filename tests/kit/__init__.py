"""Helpers of the tests: a relay in a thread, clients that speak raw DERP, waiting by conditions."""
