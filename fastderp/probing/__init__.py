"""What `fastderp-relay probe` is made of: checks a relay from outside, step by step."""
