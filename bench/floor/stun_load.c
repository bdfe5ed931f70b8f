/* Keeps 32 STUN requests under way to 127.0.0.1:PORT for SECONDS; prints how many were answered and how many were lost.
 *
 *     stun_load PORT SECONDS
 *
 * As many requests are sent at once as answers were received at once. A request without an answer within 0.5 s is lost. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { IN_FLIGHT = 32, LOST_AFTER_MS = 500 };

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

int main(int argc, char **argv)
{
    static uint8_t request[40] = "\0\1\0\x14\x21\x12\xA4\x42" "transaction!" "\x80\x22\0\x08tailnode" "\x80\x28\0\x04";
    static uint8_t answers[IN_FLIGHT][64];
    struct mmsghdr out[IN_FLIGHT] = {0}, in[IN_FLIGHT] = {0};
    struct iovec out_parts = {request, sizeof request}, in_parts[IN_FLIGHT];
    struct sockaddr_in relay = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    uint32_t fingerprint = htonl(crc32(request, 32) ^ 0x5354554E);
    long n_answered = 0, n_lost = 0;
    int n, n_due = IN_FLIGHT;
    if (argc != 3)
        return 2;
    relay.sin_port = htons(atoi(argv[1]));
    memcpy(request + 36, &fingerprint, 4);
    for (int i = 0; i < IN_FLIGHT; i++) {
        in_parts[i] = (struct iovec){answers[i], sizeof answers[i]};
        in[i].msg_hdr = (struct msghdr){.msg_iov = &in_parts[i], .msg_iovlen = 1};
        out[i].msg_hdr = (struct msghdr){.msg_iov = &out_parts, .msg_iovlen = 1};
    }
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&relay, sizeof relay))
        return 1;
    for (double end_s = now_s() + atof(argv[2]); now_s() < end_s;) {
        if (n_due && sendmmsg(fd, out, n_due, 0) != n_due)
            return 1;
        struct pollfd readable = {fd, POLLIN, 0};
        if (!poll(&readable, 1, LOST_AFTER_MS)) {
            n_lost += IN_FLIGHT;
            n_due = IN_FLIGHT;
            continue;
        }
        n = recvmmsg(fd, in, IN_FLIGHT, MSG_DONTWAIT, NULL);
        n_due = n > 0 ? n : 0;
        n_answered += n_due;
    }
    printf("%ld %ld\n", n_answered, n_lost);
    return 0;
}
