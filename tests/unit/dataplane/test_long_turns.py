"""Times of a worker whose turn takes long: a virtual machine may stop in the middle of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.compiler import has_c_compiler
from tests.kit.preload import preloading

pytestmark = [
    pytest.mark.skipif(not has_c_compiler(), reason="no C compiler"),
    pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer has the place"),
]

# The next write of a worker to a full socket takes `stop_s` seconds by the clock.
_CLOCK = """
#define _GNU_SOURCE
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int stop_s;
static int shift_s;

int clock_gettime(clockid_t clock, struct timespec *at) {
    int result = syscall(SYS_clock_gettime, clock, at);
    if (clock == CLOCK_MONOTONIC) at->tv_sec += __atomic_load_n(&shift_s, __ATOMIC_RELAXED);
    return result;
}

static void stop(void) {
    char thread[16] = "";
    if (prctl(PR_GET_NAME, thread) == 0 && strcmp(thread, "fastderp-worker") == 0)
        __atomic_add_fetch(&shift_s, __atomic_exchange_n(&stop_s, 0, __ATOMIC_RELAXED),
                           __ATOMIC_RELAXED);
}

ssize_t send(int fd, const void *data, size_t n, int flags) {
    ssize_t taken = syscall(SYS_sendto, fd, data, n, flags, NULL, 0);
    if (taken < (ssize_t)n) stop();
    return taken;
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    ssize_t n = 0, taken = syscall(SYS_sendmsg, fd, message, flags);
    for (size_t i = 0; i < message->msg_iovlen; i++) n += message->msg_iov[i].iov_len;
    if (taken < n) stop();
    return taken;
}
"""

_READER_GETS_ALL = """
import ctypes
from fastderp.wire.protocol import FrameType, frame
from tests.kit.plane import PlanePeer, count, dropped, running_plane

stop_s = ctypes.c_int.in_dll(ctypes.CDLL(None), "stop_s")
with running_plane(workers=1, write_timeout_s=600, keep_alive_s=86400) as plane:
    sender, reader = PlanePeer(plane), PlanePeer(plane)
    for peer in (sender, reader):
        peer.socket.settimeout(None)    # the clock of Python goes on, too
    stop_s.value = 3600
    sender.write(frame(FrameType.SEND_PACKET, reader.key, bytes(1400)) * 400)
    sender.sync()
    assert stop_s.value == 0 and count(plane, "backlog_bytes")
    sender.sync()
    for _ in range(400 - sum(dropped(plane).values())):
        assert reader.receive()[1] == sender.key + bytes(1400)
    reader.sync()
"""


def test_a_reader_has_the_whole_write_timeout_although_the_turn_of_the_write_took_longer(
    tmp_path: Path,
) -> None:
    environment = preloading(_CLOCK, tmp_path)
    subprocess.run([sys.executable, "-c", _READER_GETS_ALL], env=environment, check=True)
