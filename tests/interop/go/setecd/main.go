// Setecd is a setec server on loopback where everybody may do everything, of
// tailscale's own library: the one it is tested with. It prints its URL and
// ends with its input.
package main

import (
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/tailscale/setec/setectest"
)

func main() {
	everything := func(pattern, name string) (bool, error) { return true, nil }
	testing.Main(everything, []testing.InternalTest{{Name: "serve", F: serve}}, nil, nil)
}

// serve has the shape of a test because setectest asks for one.
func serve(t *testing.T) {
	server := httptest.NewServer(setectest.NewServer(t, setectest.NewDB(t, nil), nil).Mux)
	defer server.Close()
	fmt.Println(server.URL)
	io.Copy(io.Discard, os.Stdin)
}
