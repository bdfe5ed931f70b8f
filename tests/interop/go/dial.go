package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"

	"tailscale.com/derp/derpconst"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/net/netns"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

// options says where the client connects and as whom.
type options struct {
	url         string
	region      string // tailcfg.DERPRegion as JSON; wins over url
	privateKey  string
	meshKey     string
	rootFile    string
	pin         string
	insecure    bool
	tls12       bool
	noFastStart bool
	prober      bool
	watch       bool
	reconnect   bool
	verbose     bool
}

func parseOptions() *options {
	o := new(options)
	flag.StringVar(&o.url, "url", "", "relay to connect to, http or https, with its path")
	flag.StringVar(&o.region, "region", "", "region to connect to instead of -url, a DERPRegion as JSON")
	flag.StringVar(&o.privateKey, "key", "", "node private key (privkey:…); empty draws one")
	flag.StringVar(&o.meshKey, "mesh-key", "", "log in with this mesh key, 64 hexadecimal digits")
	flag.StringVar(&o.rootFile, "root", "", "PEM file of one more trusted root certificate")
	flag.StringVar(&o.pin, "pin", "", "CertName of the relay, such as sha256-raw:…")
	flag.BoolVar(&o.insecure, "insecure", false, "accept any certificate, as InsecureForTests does")
	flag.BoolVar(&o.tls12, "tls12", false, "offer no TLS version above 1.2")
	flag.BoolVar(&o.noFastStart, "no-fast-start", false, "over TLS 1.3 still wait for the HTTP answer and ServerKey")
	flag.BoolVar(&o.prober, "prober", false, "log in as a prober")
	flag.BoolVar(&o.watch, "watch", false, "send WatchConns on every connection")
	flag.BoolVar(&o.reconnect, "reconnect", false, "connect again after a failure instead of exiting")
	flag.BoolVar(&o.verbose, "v", false, "log what the client library says to standard error")
	flag.Parse()
	return o
}

// link is a derphttp client plus what it does not tell by itself: the TLS
// state of a connection that was dialled for it.
type link struct {
	*derphttp.Client
	privateKey key.NodePrivate

	mu     sync.Mutex
	dialed *tls.ConnectionState // of the last connection made by dialTLS
}

// tlsVersion is "" over plain TCP, else "1.2" or "1.3".
func (l *link) tlsVersion() string {
	state, _ := l.TLSConnectionState()
	if state == nil {
		l.mu.Lock()
		state = l.dialed
		l.mu.Unlock()
	}
	switch {
	case state == nil:
		return ""
	case state.Version == tls.VersionTLS13:
		return "1.3"
	case state.Version == tls.VersionTLS12:
		return "1.2"
	}
	return fmt.Sprintf("%#x", state.Version)
}

func newLink(o *options) (*link, error) {
	netns.SetEnabled(false) // socket marks need privileges that a test may not have
	l := &link{privateKey: key.NewNode()}
	if o.privateKey != "" {
		if err := l.privateKey.UnmarshalText([]byte(o.privateKey)); err != nil {
			return nil, err
		}
	}
	conf, err := o.tlsConfig()
	if err != nil {
		return nil, err
	}
	logf := logger.Discard
	if o.verbose {
		logf = log.Printf
	}

	switch {
	case o.noFastStart:
		err = l.dialAheadOfClient(o, conf, logf)
	case o.region != "" || o.pin != "" || o.insecure:
		region, regionErr := o.derpRegion()
		if regionErr != nil {
			return nil, regionErr
		}
		getRegion := func() *tailcfg.DERPRegion { return region }
		l.Client = derphttp.NewRegionClient(l.privateKey, logf, netmon.NewStatic(), getRegion)
		l.TLSConfig = conf
	default:
		l.Client, err = derphttp.NewClient(l.privateKey, o.url, logf, netmon.NewStatic())
		if err == nil {
			l.TLSConfig = conf
		}
	}
	if err != nil {
		return nil, err
	}
	if o.meshKey != "" {
		if l.MeshKey, err = key.ParseDERPMesh(o.meshKey); err != nil {
			return nil, err
		}
	}
	l.IsProber = o.prober
	l.WatchConnectionChanges = o.watch
	l.SetCanAckPings(true)
	return l, nil
}

func (o *options) tlsConfig() (*tls.Config, error) {
	conf := new(tls.Config)
	if o.tls12 {
		conf.MaxVersion = tls.VersionTLS12
	}
	if o.rootFile == "" {
		return conf, nil
	}
	pem, err := os.ReadFile(o.rootFile)
	if err != nil {
		return nil, err
	}
	conf.RootCAs = x509.NewCertPool()
	if !conf.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificate in it", o.rootFile)
	}
	return conf, nil
}

// derpRegion is the region given, or one of a single node made of the URL.
func (o *options) derpRegion() (*tailcfg.DERPRegion, error) {
	region := new(tailcfg.DERPRegion)
	if o.region != "" {
		return region, json.Unmarshal([]byte(o.region), region)
	}
	u, err := url.Parse(o.url)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		return nil, fmt.Errorf("%s: -pin and -insecure need a URL with a port", o.url)
	}
	region.RegionID = 900
	region.RegionCode = "test"
	region.Nodes = []*tailcfg.DERPNode{{
		Name:             "900a",
		RegionID:         900,
		HostName:         u.Hostname(),
		DERPPort:         port,
		CertName:         o.pin,
		InsecureForTests: o.insecure,
	}}
	return region, nil
}

// dialAheadOfClient makes TLS here and lets the client believe in plain HTTP:
// derphttp starts fast whenever it sees a metacert over TLS 1.3, and this is
// how its ordinary start gets onto such a connection.
func (l *link) dialAheadOfClient(o *options, conf *tls.Config, logf logger.Logf) error {
	u, err := url.Parse(o.url)
	if err != nil {
		return err
	}
	if u.Scheme != "https" || u.Port() == "" {
		return fmt.Errorf("%s: -no-fast-start needs an https URL with a port", o.url)
	}
	conf.ServerName = u.Hostname()
	conf.InsecureSkipVerify = o.insecure
	u.Scheme = "http"
	if l.Client, err = derphttp.NewClient(l.privateKey, u.String(), logf, netmon.NewStatic()); err != nil {
		return err
	}
	l.SetURLDialer(func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&tls.Dialer{Config: conf}).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		state := conn.(*tls.Conn).ConnectionState()
		l.mu.Lock()
		l.dialed = &state
		l.mu.Unlock()
		return conn, nil
	})
	return nil
}

// startedFast reports whether the connection was made without waiting for the
// relay, which derphttp does whenever TLS 1.3 shows it a metacert.
func (l *link) startedFast() bool {
	state, ok := l.TLSConnectionState()
	if !ok || state.Version < tls.VersionTLS13 {
		return false
	}
	for _, cert := range state.PeerCertificates {
		if strings.HasPrefix(cert.Subject.CommonName, derpconst.MetaCertCommonNamePrefix) {
			return true
		}
	}
	return false
}
