// Clientrate measures tailscale's own DERP client for bench/client_rate.py: it sends or receives packets of one size as
// fast as it can and prints one line of JSON.
package main

import (
	"encoding/json"
	"flag"
	"log"
	"os"
	"syscall"
	"time"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

func main() {
	url := flag.String("url", "", "the measuring peer, with the path that says what it does")
	direction := flag.String("direction", "send", "send or recv")
	n := flag.Int("n", 100_000, "packets")
	size := flag.Int("size", 1400, "bytes of data in a packet")
	flag.Parse()

	client, err := derphttp.NewClient(key.NewNode(), *url, logger.Discard, netmon.NewStatic())
	if err != nil {
		log.Fatal("clientrate: ", err)
	}
	defer client.Close()
	if _, err := client.Recv(); err != nil { // ServerInfo
		log.Fatal("clientrate: ", err)
	}
	cpu, start := cpuSeconds(), time.Now()
	if *direction == "send" {
		to, data := key.NewNode().Public(), make([]byte, *size)
		for range *n {
			if err := client.Send(to, data); err != nil {
				log.Fatal("clientrate: ", err)
			}
		}
		receive(client, 1) // The peer answers when it has everything.
	} else {
		// The first packet starts the clock: the peer waits for nothing.
		receive(client, 1)
		cpu, start = cpuSeconds(), time.Now()
		receive(client, *n-1)
	}
	seconds := time.Since(start).Seconds()
	json.NewEncoder(os.Stdout).Encode(map[string]float64{
		"packets": float64(*n), "seconds": seconds, "cpu_seconds": cpuSeconds() - cpu,
	})
}

func receive(client *derphttp.Client, n int) {
	for n > 0 {
		message, err := client.Recv()
		if err != nil {
			log.Fatal("clientrate: ", err)
		}
		if _, ok := message.(derp.ReceivedPacket); ok {
			n--
		}
	}
}

func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		log.Fatal("clientrate: ", err)
	}
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}
