# A load's state and the engine's operations on it. The thread that runs the load owns everything,
# except `stopped`, which any thread sets, and the counters, which other threads may read late.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastderp.tls.aead cimport Keyring
from fastderp.tls.record cimport RECORD_WIRE_MAX, Records
from fastderp.loadgen.histogram cimport Histogram
from fastderp.loadgen.payload cimport PAYLOAD_MAX


cdef enum:
    FRAME_HEAD = 5
    KEY_SIZE = 32
    FRAME_MAX = FRAME_HEAD + KEY_SIZE + PAYLOAD_MAX
    SEND_PACKET = 0x04
    RECV_PACKET = 0x05
    BATCH = 65536                   # bytes that a connection writes at a time, plus up to one frame
    INPUT = 262144                  # bytes per read; more would not fit the CPU's caches
    INPUT_MAX = INPUT + RECORD_WIRE_MAX
    OUTPUT_MAX = BATCH + FRAME_MAX
    N_SIZES = 4096                  # length of the drawn sequence of packet sizes
    N_EVENTS = 256
    N_KEYS = 4096                   # expanded keys
    TIMER = 0xFFFFFFFF              # epoll's data for the timer; connections have their index

cdef enum:
    IDLE_WAIT_MS = 100              # the longest delay of a `stop`
    STALL_NS = 500000000            # after this time without an arrival a flow's packets are lost
    SLOW_TURN_NS = 10000000         # the interval between reads of slow readers

cdef enum Pace:
    PACE_WINDOW                     # an arrival releases the next packet
    PACE_SCHEDULE                   # packets leave by schedule
    PACE_FLOOD                      # senders never wait

cdef enum Phase:
    WARM_UP
    MEASURE
    DRAIN                           # sends nothing new; ends when no packet is in flight


cdef struct Flow:                   # owned by the load's thread
    uint32_t source                 # connection indexes
    uint32_t target
    uint64_t credit                 # packets it may send now
    uint64_t next_sequence
    uint64_t expected               # every lower sequence number has arrived or is lost
    uint64_t expected_at_check      # `expected` at the latest stall check
    uint64_t sent_at_check          # `next_sequence` at the latest stall check
    uint64_t measured_from          # the first sequence number of the measurement
    uint64_t n_delivered            # arrivals during the measurement
    Flow* next_ready                # valid while is_ready
    bint is_ready

cdef struct Bytes:                  # grows, never shrinks; guarded like the struct it is in
    uint8_t* data
    size_t n
    size_t capacity

cdef struct Connection:             # owned by the load's thread
    int fd
    uint8_t key[KEY_SIZE]
    Flow* first_ready               # flows with credit, in the order they may send
    Flow* last_ready
    Connection* next_dirty          # valid while is_dirty
    Records records                 # only with is_tls
    Bytes input                     # an incomplete frame
    Bytes wire_input                # with is_tls: an incomplete record
    Bytes output                    # bytes the socket did not take; EPOLLOUT is armed meanwhile
    size_t n_output_written
    bint is_tls
    bint is_dirty                   # in the load's list of connections with flows to send
    bint is_dead
    bint is_slow                    # reads only `slow_read` bytes every SLOW_TURN_NS

cdef struct Load:                   # owned by its thread; others touch `stopped` and counters only
    int epoll
    int timer
    Pace pace
    Phase phase
    bint verify
    bint joined_records
    bint busy_wait                  # poll for packets instead of sleeping until some arrive
    int stopped                     # set by any thread, through flag_set
    Connection* connections
    uint32_t n_connections
    Flow* flows
    uint32_t n_flows
    Connection* first_dirty
    Connection* last_dirty
    uint64_t window
    uint32_t in_a_row               # packets of one flow before the next flow sends
    size_t slow_read
    uint32_t n_slow
    uint64_t next_slow_ns
    double gap_ns                   # between two packets of the schedule
    uint64_t schedule_start_ns
    uint64_t n_scheduled            # runs of in_a_row packets
    uint64_t n_in_flight
    uint64_t next_check_ns
    Keyring keyring
    uint64_t seed
    uint8_t* pattern
    uint32_t* sizes                 # N_SIZES of them
    # Work space: the rest of the previous read, then the new read; and the packets of one write.
    uint8_t* input                  # FRAME_MAX + INPUT_MAX bytes of frames
    uint8_t* wire_input             # INPUT_MAX bytes of records
    uint8_t* output                 # OUTPUT_MAX bytes of frames
    uint8_t* wire_output            # 2 * OUTPUT_MAX bytes: even records of the smallest frames fit
    # The measurement; other threads may read it late.
    uint64_t n_sent
    uint64_t n_sent_bytes
    uint64_t n_delivered            # arrivals while measuring, regardless of their sending time
    uint64_t n_delivered_bytes
    uint64_t n_answered             # sent while measuring and arrived by the end of the drain
    uint64_t n_corrupt
    uint64_t n_unexpected           # arrived twice, out of order, or after they counted as lost
    uint64_t n_dead
    uint64_t measure_ns
    Histogram latency

# Replace the contents. False when memory is out.
cdef bint bytes_set(Bytes* b, const uint8_t* data, size_t n) noexcept nogil

# Open every window, or start the schedule.
cdef void load_start(Load* load, uint64_t now_ns) noexcept nogil

# Discard the measurement and begin a new one.
cdef void load_measure(Load* load) noexcept nogil

# Run until the time is over, the drain is complete, every connection has ended, or `stopped` is
# set.
cdef void load_run(Load* load, uint64_t until_ns) noexcept nogil
