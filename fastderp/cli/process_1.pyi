def exit_at(number: int) -> None:
    """Have the process end with exit code 128 + `number` at this signal.

    Python keeps its own handler for a signal that is pending. Raises OSError for a number that is
    not a signal's.
    """
