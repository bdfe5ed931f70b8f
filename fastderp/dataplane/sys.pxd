# The system calls, clocks, threads, atomics and bit counts of the data plane. No other file of it
# declares C.

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from posix.types cimport off_t
from posix.uio cimport iovec


cdef extern from "<errno.h>" nogil:
    int errno
    enum:
        EAGAIN, EINTR, ENOMEM, ENOBUFS, EPIPE, ECONNRESET, ENOPROTOOPT, EOPNOTSUPP, ETIMEDOUT,
        EHOSTUNREACH, ENETUNREACH, EHOSTDOWN, ENETDOWN, ENONET

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    ssize_t read(int fd, void* buf, size_t n)
    ssize_t write(int fd, const void* buf, size_t n)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec* ts)
    enum:
        CLOCK_MONOTONIC

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* addr, size_t n, int prot, int flags, int fd, off_t offset)
    int munmap(void* addr, size_t n)
    int madvise(void* addr, size_t n, int advice)
    void* MAP_FAILED
    enum:
        PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MADV_DONTNEED

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        void* msg_name
        unsigned int msg_namelen
        iovec* msg_iov
        size_t msg_iovlen
        void* msg_control
        size_t msg_controllen
        int msg_flags
    ssize_t recv(int fd, void* buf, size_t n, int flags)
    ssize_t send(int fd, const void* buf, size_t n, int flags)
    ssize_t sendmsg(int fd, const msghdr* msg, int flags)
    int getsockopt(int fd, int level, int name, void* value, unsigned int* n)
    int setsockopt(int fd, int level, int name, const void* value, unsigned int n)
    int shutdown(int fd, int how)
    enum:
        MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_RDWR, SHUT_WR, SOL_SOCKET, SO_ERROR, SO_RCVBUF

cdef extern from "<netinet/in.h>" nogil:
    enum:
        IPPROTO_TCP

cdef extern from "<netinet/tcp.h>" nogil:
    enum:
        TCP_INFO, TCP_NODELAY, TCP_NOTSENT_LOWAT

# The first fields of the kernel's struct tcp_info, which grows only at its end.
cdef extern from *:
    """
    struct tcp_counts {
        unsigned char flags[8];
        unsigned int until_rtt[15];
        unsigned int rtt_us;
        unsigned int until_pacing[8];
        unsigned long long pacing[2];
        unsigned long long bytes_acked, bytes_received;
        unsigned int until_delivery[6];
        unsigned long long until_delivered[4];
        unsigned int delivered[2];
        unsigned long long bytes_sent;
    };
    """
    struct tcp_counts:
        unsigned int rtt_us
        unsigned long long bytes_received
        unsigned long long bytes_sent

cdef extern from "<sys/epoll.h>" nogil:
    union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    int epoll_wait(int epfd, epoll_event* events, int maxevents, int timeout_ms)
    enum:
        EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL
        EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP, EPOLLET

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int initial, int flags)
    enum:
        EFD_CLOEXEC, EFD_NONBLOCK

cdef extern from "<sys/timerfd.h>" nogil:
    struct itimerspec:
        timespec it_interval
        timespec it_value
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec* new, itimerspec* old)
    enum:
        TFD_CLOEXEC, TFD_NONBLOCK, TFD_TIMER_ABSTIME

cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void* buf, size_t n, unsigned int flags)

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_attr_t:
        pass
    ctypedef unsigned long pthread_t
    int pthread_mutex_init(pthread_mutex_t* m, const void* attr)
    int pthread_mutex_lock(pthread_mutex_t* m)
    int pthread_mutex_unlock(pthread_mutex_t* m)
    int pthread_mutex_destroy(pthread_mutex_t* m)
    int pthread_create(pthread_t* t, const pthread_attr_t* attr,
                       void* (*run)(void*) noexcept nogil, void* arg)
    int pthread_join(pthread_t t, void** result)
    int pthread_attr_init(pthread_attr_t* attr)
    int pthread_attr_setstacksize(pthread_attr_t* attr, size_t n)
    int pthread_attr_destroy(pthread_attr_t* attr)

cdef extern from "<sys/prctl.h>" nogil:
    enum: PR_SET_NAME            # the calling thread's name in ps, top and perf; up to 15 bytes
    int prctl(int option, ...)

# glibc keeps freed memory until malloc_trim; other C libraries return it to the system themselves.
cdef extern from *:
    """
    #include <stdlib.h>
    #ifdef __GLIBC__
    #include <malloc.h>
    #define heap_trim() ((void)malloc_trim(0))
    #else
    #define heap_trim() ((void)0)
    #endif
    """
    void heap_trim() noexcept nogil


# A worker runs for a short time whenever packets arrive. With a short slice (Linux 6.12; older
# kernels ignore it) the kernel schedules it soon, also on a busy core. Errors are ignored.
cdef extern from *:
    """
    #include <sched.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    static inline void thread_ask_short_slice(uint64_t slice_ns)
    {
    #if defined(SYS_sched_getattr) && defined(SYS_sched_setattr)
        struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority;
                 uint64_t runtime_ns, deadline_ns, period_ns; } attr;
        if (syscall(SYS_sched_getattr, 0, &attr, (unsigned)sizeof attr, 0) != 0
            || attr.policy != SCHED_OTHER)
            return;
        attr.runtime_ns = slice_ns;
        (void)syscall(SYS_sched_setattr, 0, &attr, 0);
    #endif
    }
    """
    void thread_ask_short_slice(uint64_t slice_ns) noexcept nogil


cdef inline void* pages_map(size_t n) noexcept nogil:
    # Zeroed memory, resident where it has been used: for tables of which an idle relay uses little.
    # NULL when memory is out.
    cdef void* data = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    return NULL if data == MAP_FAILED else data


cdef inline void pages_unmap(void* data, size_t n) noexcept nogil:
    if data is not NULL:
        munmap(data, n)


cdef inline void pages_release(uint8_t* data, size_t n) noexcept nogil:
    # Only pages that lie wholly in data[:n] are returned to the system; their contents are lost.
    cdef uint64_t page = 4096
    cdef uint64_t first = (<uint64_t>data + page - 1) & ~(page - 1)
    cdef uint64_t last = (<uint64_t>data + n) & ~(page - 1)
    if first < last:
        madvise(<void*>first, last - first, MADV_DONTNEED)


cdef extern from *:
    int count_leading_zeros "__builtin_clzll"(uint64_t x) noexcept nogil     # x must not be 0
    int count_trailing_zeros "__builtin_ctzll"(uint64_t x) noexcept nogil    # x must not be 0


# Atomics. Every word that threads share without a lock is read and written by these alone.
cdef extern from *:
    """
    #define atomic_load_u64(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define atomic_store_u64(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define atomic_add_u64(p, v) __atomic_add_fetch((p), (v), __ATOMIC_RELAXED)
    #define atomic_sub_u64(p, v) __atomic_sub_fetch((p), (v), __ATOMIC_RELAXED)
    #define atomic_peek_u64(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    #define atomic_poke_u64(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
    #define atomic_load_u8(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define atomic_store_u8(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define atomic_load_ptr(p) ((void*)__atomic_load_n((p), __ATOMIC_ACQUIRE))
    #define atomic_store_ptr(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define atomic_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    """
    uint64_t atomic_load_u64(const uint64_t* p) noexcept nogil
    void atomic_store_u64(uint64_t* p, uint64_t v) noexcept nogil
    uint64_t atomic_add_u64(uint64_t* p, uint64_t v) noexcept nogil
    uint64_t atomic_sub_u64(uint64_t* p, uint64_t v) noexcept nogil
    uint64_t atomic_peek_u64(const uint64_t* p) noexcept nogil
    void atomic_poke_u64(uint64_t* p, uint64_t v) noexcept nogil
    uint8_t atomic_load_u8(const uint8_t* p) noexcept nogil
    void atomic_store_u8(uint8_t* p, uint8_t v) noexcept nogil
    void* atomic_load_ptr(void** p) noexcept nogil
    void atomic_store_ptr(void** p, void* v) noexcept nogil
    void atomic_fence() noexcept nogil


cdef inline uint64_t clock_ns() noexcept nogil:
    cdef timespec ts
    clock_gettime(CLOCK_MONOTONIC, &ts)
    return <uint64_t>ts.tv_sec * 1000000000u + <uint64_t>ts.tv_nsec


cdef inline void counter_add(uint64_t* counter, uint64_t n) noexcept nogil:
    # Each counter has one writer, so a relaxed load and store suffice: they cost a plain add.
    atomic_poke_u64(counter, atomic_peek_u64(counter) + n)


cdef inline void eventfd_wake(int fd) noexcept nogil:
    cdef uint64_t one = 1
    write(fd, &one, 8)


cdef inline void eventfd_drain(int fd) noexcept nogil:
    cdef uint64_t n
    read(fd, &n, 8)


cdef inline void timerfd_wake_at(int fd, uint64_t ns) noexcept nogil:
    # At once for a time that has passed; 0 would stop the timer.
    cdef itimerspec wake
    wake.it_interval.tv_sec = wake.it_interval.tv_nsec = 0
    wake.it_value.tv_sec = <long>(ns // 1000000000u)
    wake.it_value.tv_nsec = <long>(ns % 1000000000u)
    timerfd_settime(fd, TFD_TIMER_ABSTIME, &wake, NULL)
