module fastderp.test/newest

go 1.27.4

require tailscale.com v1.104.7

// The version that 1.104.7 asks for is not published.
replace github.com/tailscale/setec => github.com/tailscale/setec v0.0.0-20251203133219-2ab774e4129a
