// Tailnet is a control server for tests: whoever logs in belongs to its tailnet and uses its DERP map.
//
// The map is read as JSON from the first line of standard input; the first line of output is where to log in.
// It ends with its input.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"

	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
)

func main() {
	input := bufio.NewReader(os.Stdin)
	derpMap := new(tailcfg.DERPMap)
	if err := json.NewDecoder(input).Decode(derpMap); err != nil {
		log.Fatal("tailnet: the DERP map: ", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal("tailnet: ", err)
	}
	control := &testcontrol.Server{
		DERPMap:          derpMap,
		ExplicitBaseURL:  "http://" + listener.Addr().String(),
		AllNodesSameUser: true,
		AllOnline:        true,
	}
	go func() { log.Fatal(http.Serve(listener, control)) }()
	fmt.Println(control.ExplicitBaseURL)
	io.Copy(io.Discard, input)
}
