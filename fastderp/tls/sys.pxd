# The functions of the C library that TLS needs: the only file of this wing that names them.

from libc.time cimport time_t, tm


cdef extern from "<time.h>" nogil:
    time_t timegm(tm* parts)  # the inverse of gmtime

cdef extern from "<pthread.h>" nogil:
    ctypedef int pthread_once_t
    pthread_once_t PTHREAD_ONCE_INIT
    int pthread_once(pthread_once_t* once, void (*run)() noexcept nogil)
