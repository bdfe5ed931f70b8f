# The system calls of STUN that the data plane does not have: the only file that names them.

from libc.stdint cimport uint8_t

from fastderp.dataplane.sys cimport msghdr, timespec
from fastderp.server.net.sys cimport in6_addr, in_addr


cdef extern from "<sys/socket.h>" nogil:
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        int cmsg_level
        int cmsg_type
    int recvmmsg(int fd, mmsghdr* messages, unsigned int n, int flags, timespec* timeout)
    int sendmmsg(int fd, mmsghdr* messages, unsigned int n, int flags)
    cmsghdr* CMSG_FIRSTHDR(msghdr* message)
    cmsghdr* CMSG_NXTHDR(msghdr* message, cmsghdr* header)
    uint8_t* CMSG_DATA(cmsghdr* header)

cdef extern from "<netinet/in.h>" nogil:
    struct in_pktinfo:
        int ipi_ifindex
        in_addr ipi_addr
    struct in6_pktinfo:
        in6_addr ipi6_addr
        unsigned int ipi6_ifindex
    enum:
        IPPROTO_IP, IPPROTO_IPV6, IP_PKTINFO, IPV6_PKTINFO

cdef extern from "<errno.h>" nogil:
    enum:
        ECONNREFUSED

cdef extern from "<sys/resource.h>" nogil:
    int setpriority(int which, int who, int priority)
    enum:
        PRIO_PROCESS
