"""The components of a running relay, each made of its section of the settings."""
