/* The floor of the relay comparison: the least a DERP relay must do per packet, and nothing else.
 *
 * One thread, one epoll, one large buffer: read, walk the frames, rewrite 33 bytes of each in place, one write
 * per destination and read. It believes every client's key, opens no box, has no timers, queues, notices or
 * limits, and drops what a socket does not take. Never run it for people.
 *
 * With a certificate it speaks TLS 1.3 through the system's OpenSSL: the records of a read are opened one after the
 * other into the buffer, and what goes to one destination is sealed into full records for one write.
 *
 * Usage: floor PORT [CERTIFICATE KEY]          (127.0.0.1 only; PEM files)
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { HEAD = 5, KEY = 32, FRAME_MAX = HEAD + KEY + 65536, READ = 262144, FDS = 65536, TABLE = 4 * FDS, RUNS = 1024 };

struct client {
    int fd;
    SSL *tls;                   /* NULL over plain TCP */
    BIO *in, *out;              /* records from and to the socket; owned by tls */
    enum { REQUEST, LOGIN, MEMBER } stage;
    uint8_t key[KEY];
    uint8_t *kept;              /* an incomplete frame */
    size_t n_kept;
    uint8_t *unsent;            /* the rest of a write, so that no frame is cut */
    size_t n_unsent;
    struct iovec runs[RUNS];    /* of the present read, for this destination */
    int n_runs;
    struct client *next_touched;
};

static int epoll;
static struct client *clients[FDS];         /* by descriptor */
static struct client *members[TABLE];       /* by key; open addressing */
static uint8_t buffer[FRAME_MAX + READ];
static uint8_t records[READ];               /* of the present read */
static SSL_CTX *context;                    /* NULL over plain TCP */

static struct client **place(const uint8_t *key)
{
    uint64_t hash;
    memcpy(&hash, key, sizeof hash);
    size_t i = hash % TABLE;
    while (members[i] && memcmp(members[i]->key, key, KEY) != 0)
        i = (i + 1) % TABLE;
    return &members[i];
}

static void watch(struct client *c, int operation, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = c->fd};
    epoll_ctl(epoll, operation, c->fd, &event);
}

/* The key stays in the table, so that probing needs no tombstones; a later client with it takes the place. */
static void part(struct client *c)
{
    close(c->fd);
    clients[c->fd] = NULL;
    c->fd = -1;
    SSL_free(c->tls);
    c->tls = NULL;
    free(c->kept), free(c->unsent);
    c->kept = c->unsent = NULL;
    c->n_kept = c->n_unsent = 0;
    if (c->stage != MEMBER)
        free(c);
}

static void keep(uint8_t **kept, size_t *n_kept, const uint8_t *data, size_t n)
{
    uint8_t *copy = n ? malloc(n) : NULL;
    if (n)
        memcpy(copy, data, n);
    free(*kept);
    *kept = copy, *n_kept = n;
}

/* Write the sealed records, and keep what the socket does not take. */
static void write_records(struct client *c)
{
    char *data;
    size_t n = BIO_get_mem_data(c->out, &data);
    ssize_t taken = n ? send(c->fd, data, n, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
    size_t passed = taken > 0 ? taken : 0;
    if (passed < n) {
        keep(&c->unsent, &c->n_unsent, (uint8_t *)data + passed, n - passed);
        watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    }
    (void)BIO_reset(c->out);
}

static void tell(struct client *c, const void *data, size_t n, int flags)
{
    if (c->tls)
        SSL_write(c->tls, data, n);
    else
        send(c->fd, data, n, MSG_NOSIGNAL | flags);
}

static void write_runs(struct client *c)
{
    size_t total = 0;
    if (c->tls) {
        for (int i = 0; i < c->n_runs; i++)
            SSL_write(c->tls, c->runs[i].iov_base, c->runs[i].iov_len);
        write_records(c);
        return;
    }
    for (int i = 0; i < c->n_runs; i++)
        total += c->runs[i].iov_len;
    struct msghdr message = {.msg_iov = c->runs, .msg_iovlen = c->n_runs};
    ssize_t taken = sendmsg(c->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    size_t skip = taken > 0 ? taken : 0;
    if (skip == total)
        return;
    uint8_t *rest = malloc(total - skip), *end = rest;
    for (int i = 0; i < c->n_runs; i++) {
        size_t n = c->runs[i].iov_len, passed = skip < n ? skip : n;
        end = mempcpy(end, (uint8_t *)c->runs[i].iov_base + passed, n - passed);
        skip -= passed;
    }
    c->unsent = rest, c->n_unsent = end - rest;
    watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
}

static void write_on(struct client *c)
{
    ssize_t taken = send(c->fd, c->unsent, c->n_unsent, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (taken > 0)
        keep(&c->unsent, &c->n_unsent, c->unsent + taken, c->n_unsent - taken);
    if (!c->n_unsent)
        watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

/* Add a frame to its destination's runs; frames that follow each other in the buffer become one. */
static void add(struct client *to, uint8_t *frame, size_t n, struct client **touched)
{
    struct iovec *last = to->n_runs ? &to->runs[to->n_runs - 1] : NULL;
    if (last && (uint8_t *)last->iov_base + last->iov_len == frame) {
        last->iov_len += n;
    } else if (to->n_runs < RUNS) {
        if (!to->n_runs)
            to->next_touched = *touched, *touched = to;
        to->runs[to->n_runs++] = (struct iovec){frame, n};
    }
}

static size_t relay(struct client *c, uint8_t *data, size_t n)
{
    struct client *to = NULL, *touched = NULL;
    size_t at = 0;
    while (n - at >= HEAD) {
        uint8_t *frame = data + at;
        uint32_t length;
        memcpy(&length, frame + 1, 4);
        size_t whole = HEAD + (size_t)ntohl(length);
        if (n - at < whole)
            break;
        if (frame[0] == 4) {
            if (!to || memcmp(to->key, frame + HEAD, KEY) != 0)
                to = *place(frame + HEAD);
            if (to && to->fd >= 0 && !to->n_unsent) {
                frame[0] = 5;
                memcpy(frame + HEAD, c->key, KEY);
                add(to, frame, whole, &touched);
            }
        }
        at += whole;
    }
    for (; touched; touched = touched->next_touched) {
        write_runs(touched);
        touched->n_runs = 0;
    }
    return at;
}

/* The answers are as long as real ones. The server key is X25519's base point; ServerInfo is nonsense. */
static size_t greet(struct client *c, uint8_t *data, size_t n)
{
    static const char upgrade[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n";
    uint8_t *end = memmem(data, n, "\r\n\r\n", 4);
    uint8_t server_key[HEAD + 40] = {1, 0, 0, 0, 40, 'D', 'E', 'R', 'P', 0xf0, 0x9f, 0x94, 0x91, 9};
    if (!end)
        return 0;
    if (!memmem(data, end - data, "Derp-Fast-Start: 1", 18))
        tell(c, upgrade, sizeof upgrade - 1, MSG_MORE);
    tell(c, server_key, sizeof server_key, 0);
    c->stage = LOGIN;
    return end + 4 - data;
}

static size_t admit(struct client *c, uint8_t *data, size_t n)
{
    uint8_t server_info[HEAD + 53] = {3, 0, 0, 0, 53};
    uint32_t length;
    if (n < HEAD + KEY)
        return 0;
    memcpy(&length, data + 1, 4);
    if (n < HEAD + ntohl(length))
        return 0;
    memcpy(c->key, data + HEAD, KEY);
    *place(c->key) = c;
    c->stage = MEMBER;
    tell(c, server_info, sizeof server_info, 0);
    return HEAD + ntohl(length);
}

/* Read records and open them into the buffer; return what recv would return for the plaintext. */
static ssize_t receive_tls(struct client *c, uint8_t *into)
{
    ssize_t got = recv(c->fd, records, READ, MSG_DONTWAIT), total = 0;
    if (got <= 0)
        return got;
    BIO_write(c->in, records, got);
    ERR_clear_error();
    for (int n; total < READ && (n = SSL_read(c->tls, into + total, READ - total)) > 0;)
        total += n;
    if (!total && SSL_get_error(c->tls, -1) != SSL_ERROR_WANT_READ)
        return 0;
    errno = EAGAIN;
    return total ? total : -1;
}

static void serve(struct client *c)
{
    size_t n = c->n_kept, at = 0;
    memcpy(buffer, c->kept ? c->kept : buffer, n);
    ssize_t got = n >= FRAME_MAX ? 0 : c->tls ? receive_tls(c, buffer + n) : recv(c->fd, buffer + n, READ, MSG_DONTWAIT);
    if (c->tls && c->stage != MEMBER && got < 0)
        write_records(c);       /* of the handshake */
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN)
            part(c);
        return;
    }
    n += got;
    if (c->stage == REQUEST)
        at += greet(c, buffer, n);
    if (c->stage == LOGIN)
        at += admit(c, buffer + at, n - at);
    if (c->tls && BIO_pending(c->out))
        write_records(c);
    if (c->stage == MEMBER)
        at += relay(c, buffer + at, n - at);
    keep(&c->kept, &c->n_kept, buffer + at, n - at);
}

static void welcome(int listener)
{
    int one = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    struct client *c = fd < FDS ? calloc(1, sizeof *c) : NULL;
    if (!c) {
        close(fd);
        return;
    }
    c->fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    clients[fd] = c;
    if (context) {
        c->tls = SSL_new(context), c->in = BIO_new(BIO_s_mem()), c->out = BIO_new(BIO_s_mem());
        SSL_set_bio(c->tls, c->in, c->out);
        SSL_set_accept_state(c->tls);
    }
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

int main(int n_arguments, char **arguments)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    address.sin_port = htons(n_arguments > 1 ? atoi(arguments[1]) : 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (n_arguments == 4) {
        context = SSL_CTX_new(TLS_server_method());
        SSL_CTX_set_num_tickets(context, 0);
        if (SSL_CTX_use_certificate_chain_file(context, arguments[2]) != 1 ||
            SSL_CTX_use_PrivateKey_file(context, arguments[3], SSL_FILETYPE_PEM) != 1) {
            ERR_print_errors_fp(stderr);
            return 1;
        }
    }
    if ((n_arguments != 2 && n_arguments != 4) || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("floor PORT [CERTIFICATE KEY]");
        return 1;
    }
    epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event events[256], hear = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &hear);
    for (;;) {
        int n = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < n; i++) {
            struct client *c = clients[events[i].data.fd];
            if (events[i].data.fd == listener)
                welcome(listener);
            else if (c && events[i].events & EPOLLOUT)
                write_on(c);
            else if (c)
                serve(c);
        }
    }
}
