# The system calls of STUN that the data plane does not have: the only file that names them.

from libc.stdint cimport uint8_t, uint32_t

from fastderp.dataplane.sys cimport msghdr, timespec


cdef extern from "<sys/socket.h>" nogil:
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    int recvmmsg(int fd, mmsghdr* messages, unsigned int n, int flags, timespec* timeout)
    int sendmmsg(int fd, mmsghdr* messages, unsigned int n, int flags)
    cmsghdr* CMSG_FIRSTHDR(msghdr* message)
    cmsghdr* CMSG_NXTHDR(msghdr* message, cmsghdr* header)
    uint8_t* CMSG_DATA(cmsghdr* header)
    enum:
        AF_INET, AF_INET6

cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        uint32_t s_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    struct sockaddr_in:
        unsigned short sin_family
        unsigned short sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        unsigned short sin6_family
        unsigned short sin6_port
        in6_addr sin6_addr
    struct in_pktinfo:
        int ipi_ifindex
        in_addr ipi_spec_dst
        in_addr ipi_addr
    struct in6_pktinfo:
        in6_addr ipi6_addr
        unsigned int ipi6_ifindex
    enum:
        IPPROTO_IP, IPPROTO_IPV6, IP_PKTINFO, IPV6_PKTINFO

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long n, int timeout_ms)
    enum:
        POLLIN

cdef extern from "<errno.h>" nogil:
    enum:
        ECONNREFUSED, EHOSTUNREACH, ENETUNREACH

cdef extern from "<sys/resource.h>" nogil:
    int setpriority(int which, int who, int priority)
    enum:
        PRIO_PROCESS
