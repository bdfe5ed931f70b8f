"""The fair queue of one lane as a Python class. A packet is (sender, size of its frame, number)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from fastderp.dataplane.fair_queue cimport (
    Flows, flows_arrive, flows_bypass, flows_free, flows_init, flows_pop,
    flows_pop_excess, flows_pop_older, flows_push,
)
from fastderp.dataplane.fifo cimport Node


cdef object taken(Node* node):
    cdef uint64_t sender = 0
    if node is NULL:
        return None
    memcpy(&sender, &node.data[5], sizeof(sender))
    packet = (sender, node.n, node.queued_ns)
    free(node)
    return packet


cdef class FairQueue:
    cdef Flows flows

    def __cinit__(self, uint64_t secret=12345):
        memset(&self.flows, 0, sizeof(Flows))
        flows_init(&self.flows, secret)

    def push(self, uint64_t sender, uint32_t n, uint64_t number=0, bint remember=True):
        """Queue a packet of a frame of n bytes, at least 13, of which number is the time."""
        cdef Node* node = self.packet(sender, n, number)
        cdef uint32_t own = flows_arrive(&self.flows, node.data, n)
        if not flows_push(&self.flows, own, node, remember):
            free(node)
            raise MemoryError

    def displace(self, uint64_t sender, uint32_t n, uint64_t number=0):
        """Queue a packet in the place of another; return that one, or the packet itself."""
        cdef Node* node = self.packet(sender, n, number)
        cdef uint32_t own = flows_arrive(&self.flows, node.data, n)
        cdef Node* excess = flows_pop_excess(&self.flows, own)
        if excess is NULL:
            return taken(node)
        if not flows_push(&self.flows, own, node, True):
            free(node)
            raise MemoryError
        return taken(excess)

    cdef Node* packet(self, uint64_t sender, uint32_t n, uint64_t number) except NULL:
        cdef Node* node = <Node*>calloc(1, sizeof(Node) + n)
        if node is NULL:
            raise MemoryError
        node.n = n
        node.queued_ns = number
        memcpy(&node.data[5], &sender, sizeof(sender))
        return node

    def pop(self):
        """Return the packet of the sender to serve next, or None."""
        return taken(flows_pop(&self.flows))

    def pop_older(self, uint64_t sender, uint64_t since):
        cdef uint8_t head[13]
        memset(head, 0, sizeof(head))
        memcpy(&head[5], &sender, sizeof(sender))
        return taken(flows_pop_older(
            &self.flows, flows_arrive(&self.flows, head, sizeof(head)), since))

    def bypass(self, uint64_t n):
        flows_bypass(&self.flows, n)

    @property
    def counts(self):
        """(packets, bytes, senders with packets, slots)."""
        return self.flows.n, self.flows.bytes, self.flows.n_active, self.flows.capacity

    def __dealloc__(self):
        while taken(flows_pop(&self.flows)) is not None:
            pass
        flows_free(&self.flows)
