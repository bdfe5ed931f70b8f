"""Ends process 1 of a container at a signal, even while Python hangs.

The kernel ignores a signal's default for process 1, and a handler in Python runs only once the main
thread does. process_1.pyi describes the interface.
"""

from libc.string cimport memset
from posix.signal cimport sigaction, sigaction_t, sigemptyset
from posix.unistd cimport _exit

from cpython.exc cimport PyErr_SetFromErrno


cdef void end(int number) noexcept nogil:
    _exit(128 + number)


def exit_at(int number):
    """See process_1.pyi."""
    cdef sigaction_t action
    memset(&action, 0, sizeof(action))
    action.sa_handler = end
    sigemptyset(&action.sa_mask)
    if sigaction(number, &action, NULL) != 0:
        PyErr_SetFromErrno(OSError)
