/* The least that a STUN server does: takes a batch of datagrams, sends 32 bytes to each sender. No checks, no source address.
 *
 *     stun_floor PORT */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { BATCH = 32 };

int main(int argc, char **argv)
{
    static unsigned char bytes[BATCH][64];
    static struct sockaddr_in senders[BATCH];
    struct mmsghdr messages[BATCH] = {0};
    struct iovec parts[BATCH];
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (argc != 2)
        return 2;
    here.sin_port = htons(atoi(argv[1]));
    if (fd < 0 || bind(fd, (struct sockaddr *)&here, sizeof here))
        return 1;
    for (;;) {
        for (int i = 0; i < BATCH; i++) {
            parts[i] = (struct iovec){bytes[i], sizeof bytes[i]};
            messages[i].msg_hdr = (struct msghdr){&senders[i], sizeof senders[i], &parts[i], 1, NULL, 0, 0};
        }
        int n = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);
        for (int i = 0; i < n; i++)
            parts[i].iov_len = 32;
        if (n > 0)
            sendmmsg(fd, messages, n, 0);
    }
}
