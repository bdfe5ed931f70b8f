"""Streams, dialling and proxies, shared by the client and by mesh links."""
