# The functions of the C library that TLS needs: the only file of this wing that names them.

from libc.time cimport time_t, tm


cdef extern from "<time.h>" nogil:
    time_t timegm(tm* parts)  # the inverse of gmtime
