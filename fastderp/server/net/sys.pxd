# System calls of streams and addresses of sockets that the data plane does not have: the only file
# that names them.

from libc.stdint cimport uint8_t, uint16_t, uint32_t


cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        pass
    struct sockaddr_storage:
        unsigned short ss_family
    int accept4(int fd, sockaddr* address, unsigned int* n, int flags)
    int getsockname(int fd, sockaddr* address, unsigned int* n)
    enum:
        AF_INET, AF_INET6, SOCK_CLOEXEC, SOCK_NONBLOCK

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* descriptors, unsigned long n, int timeout_ms)
    enum:
        POLLIN

cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        uint32_t s_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    struct sockaddr_in:
        unsigned short sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        unsigned short sin6_family
        uint16_t sin6_port
        in6_addr sin6_addr
    enum:
        INET6_ADDRSTRLEN

cdef extern from "<arpa/inet.h>" nogil:
    const char* inet_ntop(int family, const void* address, char* text, unsigned int n)
    uint16_t ntohs(uint16_t number)
