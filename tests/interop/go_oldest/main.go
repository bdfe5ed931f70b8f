// Oldkit is a DERP client made of tailscale's library of release 1.32.0. It takes a few of
// derpkit's flags and commands, and reports its events.
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sync"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

type event map[string]any

type kit struct {
	*derphttp.Client
	mu  sync.Mutex
	out *json.Encoder
}

func main() {
	url := flag.String("url", "", "relay to connect to over plain HTTP, with its path")
	region := flag.String("region", "", "region to connect to instead of -url, a DERPRegion as JSON")
	meshKey := flag.String("mesh-key", "", "log in with this mesh key, 64 hexadecimal digits")
	watch := flag.Bool("watch", false, "ask for the relay's clients")
	flag.Parse()
	client, err := newClient(*url, *region)
	if err != nil {
		fmt.Fprintln(os.Stderr, "oldkit:", err)
		os.Exit(2)
	}
	client.MeshKey = *meshKey
	client.SetCanAckPings(true)
	k := &kit{Client: client, out: json.NewEncoder(os.Stdout)}
	if err := k.Connect(context.Background()); err != nil {
		k.emit("failed", event{"error": err.Error()})
		os.Exit(1)
	}
	if *watch {
		if err := k.WatchConnectionChanges(); err != nil {
			k.emit("failed", event{"error": err.Error()})
			os.Exit(1)
		}
	}
	go k.serveCommands()
	for {
		message, err := k.Recv()
		if err != nil {
			k.emit("broken", event{"error": err.Error()})
			return
		}
		k.report(message)
	}
}

func newClient(url, region string) (*derphttp.Client, error) {
	if region == "" {
		return derphttp.NewClient(key.NewNode(), url, logger.Discard)
	}
	reg := new(tailcfg.DERPRegion)
	if err := json.Unmarshal([]byte(region), reg); err != nil {
		return nil, err
	}
	getRegion := func() *tailcfg.DERPRegion { return reg }
	return derphttp.NewRegionClient(key.NewNode(), logger.Discard, getRegion), nil
}

func (k *kit) emit(name string, fields event) {
	line := event{"event": name}
	for field, value := range fields {
		line[field] = value
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.out.Encode(line)
}

func (k *kit) report(message derp.ReceivedMessage) {
	switch m := message.(type) {
	case derp.ReceivedPacket:
		digest := sha256.Sum256(m.Data)
		k.emit("packet", event{"from": m.Source, "size": len(m.Data), "sha256": hex.EncodeToString(digest[:])})
	case derp.ServerInfoMessage:
		k.emit("ready", event{"key": k.SelfPublicKey(), "server": k.ServerPublicKey()})
	case derp.PeerGoneMessage:
		k.emit("peer_gone", event{"peer": key.NodePublic(m)})
	case derp.PeerPresentMessage:
		k.emit("peer_present", event{"peer": key.NodePublic(m)})
	case derp.HealthMessage:
		k.emit("health", event{"problem": m.Problem})
	case derp.ServerRestartingMessage:
		k.emit("restarting", event{"reconnect_in_s": m.ReconnectIn.Seconds(), "try_for_s": m.TryFor.Seconds()})
	case derp.KeepAliveMessage:
		k.emit("keep_alive", nil)
	default:
		k.emit("unknown", event{"type": fmt.Sprintf("%T", message)})
	}
}

type command struct {
	Do   string         `json:"do"`
	Peer key.NodePublic `json:"peer"`
	From key.NodePublic `json:"from"`
	Data string         `json:"data"` // hexadecimal
}

// serveCommands runs commands one after the other; each ends in a `done` or an `error` event. End
// of input closes the client.
func (k *kit) serveCommands() {
	decoder := json.NewDecoder(bufio.NewReader(os.Stdin))
	for {
		var c command
		if err := decoder.Decode(&c); err != nil {
			k.Close()
			return
		}
		if err := k.do(c); err != nil {
			k.emit("error", event{"do": c.Do, "error": err.Error()})
			continue
		}
		k.emit("done", event{"do": c.Do})
	}
}

func (k *kit) do(c command) error {
	data, err := hex.DecodeString(c.Data)
	if err != nil {
		return err
	}
	switch c.Do {
	case "send":
		return k.Send(c.Peer, data)
	case "forward":
		return k.ForwardPacket(c.From, c.Peer, data)
	case "close_peer":
		return k.ClosePeer(c.Peer)
	case "ping":
		return k.Ping(context.Background())
	}
	return fmt.Errorf("unknown command %q", c.Do)
}
