"""The parts of a running relay as `server.app` starts, reloads, measures and closes them: one section of the settings each."""
