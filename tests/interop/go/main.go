// Derpkit is one DERP client made of tailscale's own library, driven by JSON
// lines on standard input and reporting JSON lines on standard output, so that
// a test can play with it step by step.
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/types/key"
)

// reconnectPause keeps a client whose relay is down from spinning.
const reconnectPause = 100 * time.Millisecond

// shownBytes is the largest packet that an event shows in full.
const shownBytes = 4096

// event is one line of output.
type event map[string]any

// kit joins the client, its receive loop and the commands.
type kit struct {
	link      *link
	reconnect bool

	outMu sync.Mutex
	out   *json.Encoder

	mu       sync.Mutex
	exchange *exchange // takes the packets of its peer while it is set
}

func main() {
	o := parseOptions()
	l, err := newLink(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "derpkit:", err)
		os.Exit(2)
	}
	k := &kit{link: l, reconnect: o.reconnect, out: json.NewEncoder(os.Stdout)}
	if err := l.Connect(context.Background()); err != nil && !o.reconnect {
		k.emit("failed", event{"error": err.Error()})
		os.Exit(1)
	}
	go k.serveCommands()
	if err := k.receive(); !errors.Is(err, derphttp.ErrClientClosed) {
		os.Exit(1)
	}
}

func (k *kit) emit(name string, fields event) {
	line := event{"event": name}
	for field, value := range fields {
		line[field] = value
	}
	k.outMu.Lock()
	defer k.outMu.Unlock()
	k.out.Encode(line)
}

// receive reports every message until the connection is lost for good.
func (k *kit) receive() error {
	for {
		message, generation, err := k.link.RecvDetail()
		if err == nil {
			k.report(message, generation)
			continue
		}
		k.connectionLost(err)
		if !k.reconnect || errors.Is(err, derphttp.ErrClientClosed) {
			return err
		}
		time.Sleep(reconnectPause)
	}
}

func (k *kit) connectionLost(err error) {
	k.mu.Lock()
	if k.exchange != nil {
		k.exchange.fail(err)
	}
	k.mu.Unlock()
	k.emit("broken", event{"error": err.Error()})
}

func (k *kit) report(message derp.ReceivedMessage, generation int) {
	switch m := message.(type) {
	case derp.ReceivedPacket:
		k.reportPacket(m)
	case derp.ServerInfoMessage:
		local, _ := k.link.LocalAddr()
		k.emit("ready", event{
			"key":              k.link.SelfPublicKey(),
			"server":           k.link.ServerPublicKey(),
			"tls":              k.link.tlsVersion(),
			"fast_start":       k.link.startedFast(),
			"local":            local,
			"generation":       generation,
			"bytes_per_second": m.TokenBucketBytesPerSecond,
			"bytes_burst":      m.TokenBucketBytesBurst,
		})
	case derp.PeerGoneMessage:
		k.emit("peer_gone", event{"peer": m.Peer, "reason": int(m.Reason)})
	case derp.PeerPresentMessage:
		k.emit("peer_present", event{"peer": m.Key, "addr": m.IPPort, "flags": int(m.Flags)})
	case derp.PingMessage:
		k.emit("ping", event{"data": hex.EncodeToString(m[:])})
	case derp.PongMessage:
		k.emit("pong", event{"data": hex.EncodeToString(m[:])})
	case derp.KeepAliveMessage:
		k.emit("keep_alive", nil)
	case derp.HealthMessage:
		k.emit("health", event{"problem": m.Problem})
	case derp.ServerRestartingMessage:
		k.emit("restarting", event{"reconnect_in_s": m.ReconnectIn.Seconds(), "try_for_s": m.TryFor.Seconds()})
	default:
		k.emit("unknown", event{"type": fmt.Sprintf("%T", message)})
	}
}

func (k *kit) reportPacket(packet derp.ReceivedPacket) {
	k.mu.Lock()
	x := k.exchange
	k.mu.Unlock()
	if x != nil && x.peer == packet.Source {
		x.arrived(packet.Data)
		return
	}
	digest := sha256.Sum256(packet.Data)
	fields := event{"from": packet.Source, "size": len(packet.Data), "sha256": hex.EncodeToString(digest[:])}
	if len(packet.Data) <= shownBytes {
		fields["data"] = hex.EncodeToString(packet.Data)
	}
	k.emit("packet", fields)
}

// command is one line of input; which fields count depends on Do.
type command struct {
	Do        string         `json:"do"`
	Peer      key.NodePublic `json:"peer"`
	From      key.NodePublic `json:"from"`
	Data      string         `json:"data"` // hexadecimal
	Preferred bool           `json:"preferred"`
	Packets   int            `json:"packets"`
	MaxSize   int            `json:"max_size"`
	Window    int            `json:"window"`
	Seed      uint64         `json:"seed"`
	Answer    bool           `json:"answer"`
}

// serveCommands runs commands one after the other; each ends in a `done` or an
// `error` event. End of input closes the client.
func (k *kit) serveCommands() {
	lines := bufio.NewReader(os.Stdin)
	decoder := json.NewDecoder(lines)
	for {
		var c command
		if err := decoder.Decode(&c); err != nil {
			k.link.Close()
			return
		}
		fields, err := k.do(c)
		if err != nil {
			k.emit("error", event{"do": c.Do, "error": err.Error()})
			continue
		}
		if fields == nil {
			fields = event{}
		}
		fields["do"] = c.Do
		k.emit("done", fields)
	}
}

func (k *kit) do(c command) (event, error) {
	data, err := hex.DecodeString(c.Data)
	if err != nil {
		return nil, err
	}
	switch c.Do {
	case "send":
		return nil, k.link.Send(c.Peer, data)
	case "forward":
		return nil, k.link.ForwardPacket(c.From, c.Peer, data)
	case "close_peer":
		return nil, k.link.ClosePeer(c.Peer)
	case "preferred":
		k.link.NotePreferred(c.Preferred)
		return nil, nil
	case "ping":
		return k.ping()
	case "exchange":
		return k.runExchange(c)
	case "close":
		return nil, k.link.Close()
	}
	return nil, fmt.Errorf("unknown command %q", c.Do)
}

func (k *kit) ping() (event, error) {
	begin := time.Now()
	if err := k.link.Ping(context.Background()); err != nil {
		return nil, err
	}
	return event{"seconds": time.Since(begin).Seconds()}, nil
}

// runExchange says `armed` as soon as packets of the peer are taken, then runs to the end.
func (k *kit) runExchange(c command) (event, error) {
	out := newPlan(c.Seed, k.link.SelfPublicKey(), c.Packets, c.MaxSize)
	in := newPlan(c.Seed, c.Peer, c.Packets, c.MaxSize)
	x := newExchange(out, in, c.Peer, c.Window, c.Answer)
	k.setExchange(x)
	defer k.setExchange(nil)
	k.emit("armed", nil)
	result, err := x.run(k.link.Send)
	return event{"result": result}, err
}

func (k *kit) setExchange(x *exchange) {
	k.mu.Lock()
	k.exchange = x
	k.mu.Unlock()
}
