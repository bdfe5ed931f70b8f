"""fastderp: a DERP relay and client library (wire-compatible with tailscale derper)."""
