/* Sends STUN requests to 127.0.0.1:PORT for SECONDS; prints how many were sent, answered, and dropped here.
 *
 *     stun_load PORT SECONDS [RATE]
 *
 * Without RATE, 32 requests are under way: as many are sent at once as answers were received at once, and 32 that were
 * not answered within 0.5 s are replaced. With RATE, that many are sent per second by schedule, whatever is answered; answers
 * count until there was none for 0.5 s. Answers that this socket's buffer did not take are dropped here, not by the server. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/sock_diag.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { BATCH = 32, LOST_AFTER_MS = 500, BUFFER_BYTES = 1 << 24 };

static const long PAUSE_NS = 50000; /* so that a schedule sends some requests with one system call */
static struct mmsghdr out[BATCH], in[BATCH];
static long n_sent, n_answered;

static uint32_t crc32(const uint8_t *data, size_t n)
{
    uint32_t value = ~0u;
    for (size_t i = 0; i < n; i++) {
        value ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            value = value >> 1 ^ (value & 1 ? 0xEDB88320u : 0);
    }
    return ~value;
}

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static int is_readable(int fd, long wait_ns)
{
    struct pollfd readable = {fd, POLLIN, 0};
    struct timespec wait = {wait_ns / 1000000000, wait_ns % 1000000000};
    return ppoll(&readable, 1, &wait, NULL) > 0;
}

static void requests_send(int fd, int n)
{
    int sent = sendmmsg(fd, out, n, 0);
    if (sent > 0)
        n_sent += sent;
}

static int answers_take(int fd)
{
    int n = recvmmsg(fd, in, BATCH, MSG_DONTWAIT, NULL);
    if (n > 0)
        n_answered += n;
    return n > 0 ? n : 0;
}

static void keep_in_flight(int fd, double seconds)
{
    int n_due = BATCH;
    for (double end_s = now_s() + seconds; now_s() < end_s;) {
        if (n_due)
            requests_send(fd, n_due);
        n_due = is_readable(fd, LOST_AFTER_MS * 1000000L) ? answers_take(fd) : BATCH;
    }
}

static void keep_rate(int fd, double seconds, double rate)
{
    for (double began_s = now_s(), at_s = 0; at_s < seconds; at_s = now_s() - began_s) {
        long n_due = (long)(at_s * rate) - n_sent;
        if (n_due > 0)
            requests_send(fd, n_due < BATCH ? n_due : BATCH);
        if (answers_take(fd) == 0 && n_due < BATCH)
            is_readable(fd, PAUSE_NS);
    }
}

int main(int argc, char **argv)
{
    static uint8_t request[40] = "\0\1\0\x14\x21\x12\xA4\x42" "transaction!" "\x80\x22\0\x08tailnode" "\x80\x28\0\x04";
    static uint8_t answers[BATCH][64];
    static struct iovec out_parts = {request, sizeof request}, in_parts[BATCH];
    struct sockaddr_in relay = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    uint32_t fingerprint = htonl(crc32(request, 32) ^ 0x5354554E), memory[SK_MEMINFO_VARS] = {0};
    socklen_t memory_bytes = sizeof memory;
    int buffer_bytes = BUFFER_BYTES;
    if (argc != 3 && argc != 4)
        return 2;
    relay.sin_port = htons(atoi(argv[1]));
    memcpy(request + 36, &fingerprint, 4);
    for (int i = 0; i < BATCH; i++) {
        in_parts[i] = (struct iovec){answers[i], sizeof answers[i]};
        in[i].msg_hdr = (struct msghdr){.msg_iov = &in_parts[i], .msg_iovlen = 1};
        out[i].msg_hdr = (struct msghdr){.msg_iov = &out_parts, .msg_iovlen = 1};
    }
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&relay, sizeof relay))
        return 1;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer_bytes, sizeof buffer_bytes))
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer_bytes, sizeof buffer_bytes);
    if (argc == 3)
        keep_in_flight(fd, atof(argv[2]));
    else
        keep_rate(fd, atof(argv[2]), atof(argv[3]));
    while (is_readable(fd, LOST_AFTER_MS * 1000000L))
        answers_take(fd);
    getsockopt(fd, SOL_SOCKET, SO_MEMINFO, memory, &memory_bytes);
    printf("%ld %ld %u\n", n_sent, n_answered, memory[SK_MEMINFO_DROPS]);
    return 0;
}
