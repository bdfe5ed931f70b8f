# The system calls of the load generator. No other file of it declares C of the system.

from libc.stdint cimport uint32_t, uint64_t

cdef extern from "<time.h>" nogil:
    ctypedef long time_t
    ctypedef int clockid_t
    struct timespec:
        time_t tv_sec
        long tv_nsec
    struct itimerspec:
        timespec it_interval
        timespec it_value
    int CLOCK_MONOTONIC
    int clock_gettime(clockid_t clock, timespec* now)

cdef extern from "<sys/timerfd.h>" nogil:
    int TFD_NONBLOCK
    int TFD_CLOEXEC
    int TFD_TIMER_ABSTIME
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec* new, itimerspec* old)

cdef extern from "<sys/epoll.h>" nogil:
    int EPOLL_CLOEXEC
    int EPOLL_CTL_ADD
    int EPOLL_CTL_MOD
    int EPOLL_CTL_DEL
    uint32_t EPOLLIN
    uint32_t EPOLLOUT
    uint32_t EPOLLRDHUP
    uint32_t EPOLLET
    ctypedef union epoll_data_t:
        uint32_t u32
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event* event)
    int epoll_wait(int epoll, epoll_event* events, int limit, int timeout_ms)

cdef extern from "<sys/socket.h>" nogil:
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    int SOCK_STREAM
    int SOCK_NONBLOCK
    int SOCK_CLOEXEC
    ctypedef unsigned int socklen_t
    struct sockaddr:
        pass
    struct sockaddr_storage:
        unsigned short ss_family
    int socket(int family, int kind, int protocol)
    int bind(int fd, const sockaddr* address, socklen_t size)
    int connect(int fd, const sockaddr* address, socklen_t size)
    int setsockopt(int fd, int level, int name, const void* value, socklen_t size)
    ssize_t recv(int fd, void* buffer, size_t size, int flags)
    ssize_t send(int fd, const void* data, size_t size, int flags)

cdef extern from "<netinet/in.h>" nogil:
    int IPPROTO_IP
    int IPPROTO_TCP
    int IP_BIND_ADDRESS_NO_PORT

cdef extern from "<netinet/tcp.h>" nogil:
    int TCP_NODELAY
    int TCP_NOTSENT_LOWAT

cdef extern from "<string.h>" nogil:
    void* memmem(const void* where, size_t n, const void* what, size_t n_what)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    ssize_t read(int fd, void* buffer, size_t size)

cdef extern from *:
    """
    #define flag_set(flag) __atomic_store_n((flag), 1, __ATOMIC_RELAXED)
    #define flag_is_set(flag) __atomic_load_n((flag), __ATOMIC_RELAXED)
    """
    void flag_set(int* flag) noexcept nogil
    int flag_is_set(int* flag) noexcept nogil


cdef inline uint64_t clock_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec
