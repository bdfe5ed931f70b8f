package main

import (
	"bytes"
	"crypto/sha3"
	"encoding/binary"
	"fmt"
	"time"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

const (
	blockSize    = 2 * derp.MaxPacketSize
	stallTimeout = 10 * time.Second

	// Three packets of four are no larger than this, as in the traffic of a VPN.
	commonSize = 1500
)

// plan is every packet one side sends, known to both from the seed and the
// sender's key, so that sizes, contents and order are checked without a byte
// of overhead. exchange.py draws the same plan.
type plan struct {
	block   []byte // packets are slices of it
	sizes   []int
	offsets []int
}

// newPlan draws n packets of 0 … maxSize bytes, the smallest and the largest
// among them. A stream of SHAKE128(seed ‖ sender) gives the block, then a size
// and an offset for each packet.
func newPlan(seed uint64, sender key.NodePublic, n, maxSize int) *plan {
	stream := sha3.NewSHAKE128()
	stream.Write(binary.LittleEndian.AppendUint64(nil, seed))
	raw := sender.Raw32()
	stream.Write(raw[:])

	p := &plan{block: make([]byte, blockSize), sizes: make([]int, n), offsets: make([]int, n)}
	stream.Read(p.block)
	words := make([]byte, 8*n)
	stream.Read(words)
	for i := range n {
		word := words[8*i:]
		p.sizes[i] = drawnSize(binary.LittleEndian.Uint32(word), maxSize)
		p.offsets[i] = int(binary.LittleEndian.Uint32(word[4:]) % derp.MaxPacketSize)
	}
	if n >= 2 {
		p.sizes[0], p.sizes[1] = 0, maxSize
	}
	return p
}

func drawnSize(word uint32, maxSize int) int {
	limit := min(maxSize, commonSize)
	if word%4 == 0 {
		limit = maxSize
	}
	return int((word >> 2) % uint32(limit+1))
}

func (p *plan) packet(i int) []byte {
	return p.block[p.offsets[i]:][:p.sizes[i]]
}

// mismatch says how got differs from packet i: a loss, or a change.
func (p *plan) mismatch(i int, got []byte) error {
	for later := i + 1; later < min(i+64, len(p.sizes)); later++ {
		if bytes.Equal(got, p.packet(later)) {
			return fmt.Errorf("packets %d to %d were lost", i, later-1)
		}
	}
	return fmt.Errorf("packet %d arrived changed: %d bytes, %d were sent", i, len(got), p.sizes[i])
}

// exchange is one side of a two-way run of packets.
//
// Both sides hold the window without acknowledgements: packet i is sent only
// after the other side's packet i − window/2 has arrived. That one was sent
// after our packet i − window had arrived there, so at most window packets are
// ever on their way in one direction.
type exchange struct {
	peer    key.NodePublic
	out, in *plan
	first   int // packets that may be sent before any arrives
	onFirst int // packets more that the other side's first one allows

	allowed  chan struct{} // one token per packet that may be sent
	done     chan struct{} // closed when the last packet is in
	failed   chan error
	received int // owned by arrived
	bytesIn  int // owned by arrived until done is closed
}

// result is what a completed run reports.
type result struct {
	Packets      int     `json:"packets"` // each way
	BytesSent    int     `json:"bytes_sent"`
	BytesArrived int     `json:"bytes_arrived"`
	Seconds      float64 `json:"seconds"`
}

// newExchange prepares a run of n packets each way; with answer set nothing is
// sent before the other side's first packet.
func newExchange(out, in *plan, peer key.NodePublic, window int, answer bool) *exchange {
	x := &exchange{
		peer:    peer,
		out:     out,
		in:      in,
		allowed: make(chan struct{}, len(in.sizes)+window/2),
		done:    make(chan struct{}),
		failed:  make(chan error, 1),
	}
	if answer {
		x.onFirst = window / 2
	} else {
		x.allow(window / 2)
	}
	return x
}

func (x *exchange) allow(n int) {
	for range n {
		x.allowed <- struct{}{}
	}
}

// fail ends the run; only the first reason counts.
func (x *exchange) fail(err error) {
	select {
	case x.failed <- err:
	default:
	}
}

// arrived checks the next packet of the other side.
func (x *exchange) arrived(packet []byte) {
	i := x.received
	if i == len(x.in.sizes) {
		x.fail(fmt.Errorf("a packet of %d bytes came after the last one", len(packet)))
		return
	}
	if !bytes.Equal(packet, x.in.packet(i)) {
		x.fail(x.in.mismatch(i, packet))
		return
	}
	x.received++
	x.bytesIn += len(packet)
	if i == 0 {
		x.allow(x.onFirst)
	}
	x.allow(1)
	if x.received == len(x.in.sizes) {
		close(x.done)
	}
}

// run sends every packet of ours and waits for every one of theirs.
func (x *exchange) run(send func(key.NodePublic, []byte) error) (result, error) {
	begin := time.Now()
	stalled := time.NewTimer(stallTimeout)
	var sent, bytesSent int
	done := x.done
	for sent < len(x.out.sizes) || done != nil {
		allowed := x.allowed
		if sent == len(x.out.sizes) {
			allowed = nil
		}
		select {
		case <-allowed:
			packet := x.out.packet(sent)
			if err := send(x.peer, packet); err != nil {
				return result{}, err
			}
			sent++
			bytesSent += len(packet)
			stalled.Reset(stallTimeout)
		case <-done:
			done = nil
		case err := <-x.failed:
			return result{}, err
		case <-stalled.C:
			return result{}, fmt.Errorf("nothing moved for %v after %d packets were sent", stallTimeout, sent)
		}
	}
	return result{sent, bytesSent, x.bytesIn, time.Since(begin).Seconds()}, nil
}
