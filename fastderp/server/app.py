"""What `fastderp-relay` starts, and in which order; `serve` is all of it.

Only wiring: the parts are in `fastderp.server`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import signal
import stat
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import fastderp
from fastderp.cli.certificates import check_acme_installed, check_ca_file
from fastderp.cli.config import MAX_BURST, AdmissionConfig, RelayConfig
from fastderp.cli.environment import Environment
from fastderp.cli.flags import printable
from fastderp.cli.region import RegionSettings
from fastderp.errors import ConfigError, ListenError, UsageError
from fastderp.server.accept.listener import Listener
from fastderp.server.admission.admission import Admission, Verifier
from fastderp.server.admission.key_lists import KeyLists
from fastderp.server.admission.rate_limit import RateLimit
from fastderp.server.certificates.acme.challenges import HTTP_PREFIX
from fastderp.server.certificates.acme.provider import AcmeCertificates
from fastderp.server.certificates.acme.settings import VENDOR_HOSTNAME
from fastderp.server.certificates.certificate import CertificateSource
from fastderp.server.certificates.manual import ManualCertificate, certificate_files
from fastderp.server.http.bootstrap_dns import BootstrapDns, Unpublished, checked_name
from fastderp.server.http.debug import DebugAccess, DebugPages
from fastderp.server.http.pages import Site
from fastderp.server.http.routes import Routes, http_port_routes, relay_routes
from fastderp.server.http.tunnel import Tunnels
from fastderp.server.observe.log_queue import LogQueue
from fastderp.server.observe.metrics import Value
from fastderp.server.observe.reloads import Reloads
from fastderp.server.observe.supervisor import supervisor
from fastderp.server.server import Server
from fastderp.server.stun.server import StunServer, bind_stun, stun_metrics
from fastderp.tls.context import ServerContext
from fastderp.util.shortage import shortage_of
from fastderp.util.token_bucket import TokenBucket
from fastderp.wire.keys import NodePrivate, load_or_create_server_key

log: logging.Logger = logging.getLogger("fastderp")

T = TypeVar("T")


# Threads are nice one by one on Linux. More would leave logins next to nothing beside other programs.
CONTROL_NICENESS = 10

# What clients are told when a service manager ends the relay: to come back within this time, not all at once, and to look for another
# relay after this one ("no more than a few seconds", says the reference).
RECONNECT_SPREAD_S = 2.0
TRY_FOR_S = 5.0


class Signals(Protocol):
    """Where the signals of the process come from; `cli.signals.Signals` is one."""

    def attach(self, end: Callable[[int], None], reload: Callable[[], None]) -> None:
        """Call `end` on the running loop with the first signal to end, `reload` for each SIGHUP."""

    def detach(self) -> None:
        """Call nothing any more."""


async def serve(config: RelayConfig, signals: Signals, lines: LogQueue) -> None:
    """Start everything, say so, and run until SIGTERM or SIGINT asks for the end.

    SIGTERM is how a relay is restarted: its clients are told (PROTOCOL §6.11).

    Raises DerpError, before anything was served, for what cannot be used: a key, a certificate, an address.
    """
    stopping: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    started = asyncio.Event()
    reloads = Reloads()
    asyncio.get_running_loop().set_exception_handler(supervisor.note_loop_error)
    reload_wanted = False

    def reload() -> None:
        nonlocal reload_wanted
        reload_wanted = not started.is_set()
        if reload_wanted:
            log.info("SIGHUP: files are read again when the relay has started")
        else:
            reloads.run()

    signals.attach(stopping.set_result, reload)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(signals.detach)
        stack.callback(reloads.close)
        server = await _unless(stopping, _start(config, stack, reloads, lines))
        started.set()
        if server is not None:
            _let_packets_go_first()
            log.info("ready")
            if reload_wanted:
                reloads.run()
        number = await stopping
        log.info("stopping")
        if server is not None and number == signal.SIGTERM:
            server.announce_restart(0.0, TRY_FOR_S, spread_s=RECONNECT_SPREAD_S)


async def _unless(stopping: asyncio.Future[Any], work: Coroutine[None, None, T]) -> T | None:
    """Do the work and return what comes of it; give it up for None when `stopping` is done before. Raises what the work does."""
    working = asyncio.create_task(work)
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if working.done():
        return await working
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    return None


def _let_packets_go_first() -> None:
    """Have this thread, and the helpers it starts from now on, yield to those that move packets: they run already.

    A storm of logins then takes the time that packets leave, and no less than a tenth of what it would get otherwise.
    """
    with contextlib.suppress(OSError):
        os.nice(CONTROL_NICENESS)


async def _start(
    config: RelayConfig,
    stack: contextlib.AsyncExitStack,
    reloads: Reloads,
    lines: LogQueue,
) -> Server:
    """Open files and sockets, most likely mistakes first, and start serving; stack undoes it all, reloads gets what SIGHUP calls."""
    environment = Environment.read(os.environ)
    if environment.debug_logs:
        log.setLevel(logging.DEBUG)
    access = DebugAccess.from_environment(os.environ)
    key = load_or_create_server_key(config.key_file) if config.key_file else NodePrivate.generate()
    if config.acme is not None:
        check_acme_installed()
        if config.acme.ca_file is not None:
            check_ca_file(config.acme.ca_file)
    manual = (
        ManualCertificate(config.cert_dir, config.hostname)
        if config.tls and config.acme is None
        else None
    )
    region = RegionSettings(config)
    stack.push_async_callback(region.close)
    await region.read()
    bootstrap = _bootstrap_dns(config)
    _warn_of_readers(config)
    stun = None if config.stun_port is None else bind_stun(config.host, config.stun_port)
    if stun is not None:
        stack.callback(stun.close)
    rate_limit = RateLimit.load(config.rate_file) if config.rate_file else None
    admission = None if config.admission.everybody else _admission(config.admission)
    if admission is not None:
        stack.push_async_callback(admission.close)
    server = await stack.enter_async_context(
        Server(
            key,
            write_timeout=config.write_timeout_s,
            workers=config.workers,
            login_memory_bytes=config.login_memory_bytes,
            mesh_key=region.keys,
            verify=admission,
            rate_limit=rate_limit,
            rtt_stats=environment.rtt_stats,
            queue_packets=environment.queue_packets,
            watched_drops=environment.watched_drops,
            prober_logs=environment.prober_logs,
            sender_cardinality=environment.sender_cardinality,
            disallowed_app_names=config.admission.disallowed_app_names,
        )
    )
    tunnels = Tunnels() if config.ace else None
    if tunnels is not None:
        stack.callback(tunnels.close)
    if admission is not None:
        await admission.self_test()
        await stack.enter_async_context(admission.watching(server))
        reloads.append(admission.reload)
    if config.rate_file is not None:
        reloads.append(partial(_reload_rate_limit, server, config.rate_file))
    if region.reloadable:
        reloads.append(lambda: region.reload(server))
    acme = AcmeCertificates(config.acme, server.meta_cert) if config.acme is not None else None
    if acme is not None:
        stack.callback(acme.close)
        reloads.append(acme.retry)
    site = Site(
        hostname=config.hostname if config.tls else "",
        derp=config.derp,
        home=config.home,
        debug_allowed=access.allows,
    )
    routes = relay_routes(site)
    debug = DebugPages(
        values=lambda: (
            _metrics(server, bootstrap, tunnels, admission, stun, manual or acme) | lines.metrics()
        ),
        check=partial(_check, server, admission),
        traffic=server.traffic_lines,
        clients=server.clients_page(),
        access=access,
        hostname=config.hostname,
        has_mesh_key=server.has_mesh_key,
        dev=config.dev,
    )
    routes.prefixes["/debug/"] = debug.respond
    routes.exact["/bootstrap-dns"] = bootstrap.respond
    await stack.enter_async_context(bootstrap.running())
    tls = manual.context(server.meta_cert) if manual is not None else acme
    listener = _listen(server, config, config.port, routes, tls, tunnels)
    if manual is not None:
        reloads.append(partial(manual.reload, partial(setattr, listener, "tls"), server.meta_cert))
    plain = None
    if config.http_port is not None:
        plain_routes = http_port_routes(site, routes)
        if acme is not None:
            plain_routes.prefixes[HTTP_PREFIX] = acme.respond
        plain = _listen(server, config, config.http_port, plain_routes)
    if stun is not None:
        stun.start()
    server.set_mesh_peers(region.peers)
    if environment.queue_packets:
        log.info("at most %d packets of a kind wait for a client", environment.queue_packets)
    _announce(config, server, admission, region, listener, plain, stun, acme)
    if manual is not None:
        stack.callback(manual.close)
        stun_port = stun.addresses[0][1] if stun is not None else None
        manual.start(port=listener.port, stun_port=stun_port)
    if acme is not None:
        acme.start()
    return server


def _warn_of_readers(config: RelayConfig) -> None:
    """Log which of the files with secrets any user of this machine may read."""
    files = [config.key_file, config.mesh_psk_file if config.secrets is None else None]
    if config.tls and config.acme is None:
        files.append(certificate_files(config.cert_dir, config.hostname)[1])
    for path in filter(None, files):
        if path.stat().st_mode & stat.S_IROTH:
            log.warning(
                "%s is a secret, and everybody on this machine can read it: chmod 600 it", path
            )


def _listen(
    server: Server,
    config: RelayConfig,
    port: int,
    routes: Routes,
    tls: ServerContext | CertificateSource | None = None,
    tunnels: Tunnels | None = None,
) -> Listener:
    try:
        return server.listen(
            config.host,
            port,
            tls=tls,
            routes=routes,
            keepalive_idle_s=config.keepalive_s,
            user_timeout_s=config.user_timeout_s,
            accept_limiter=TokenBucket(config.accept_per_s, config.accept_burst) if tls else None,
            tunnels=tunnels,
        )
    except OSError as error:
        hint = (
            " (ports below 1024 need root or CAP_NET_BIND_SERVICE)"
            if error.errno == errno.EACCES
            else ""
        )
        raise ListenError(f"{error.strerror}{hint}") from error


def _admission(config: AdmissionConfig) -> Admission:
    lists = KeyLists.load(config.allow_file, config.deny_file)
    verifiers: list[Verifier] = []
    own_key = None
    if config.tailscaled or config.url:
        # Only now: it brings aiohttp.
        from fastderp.server.admission.verifiers import AdmissionUrl, Tailscaled

        if config.tailscaled:
            tailscaled = Tailscaled(config.socket)
            verifiers.append(tailscaled)
            own_key = tailscaled.own_key
        if config.url:
            try:
                verifiers.append(AdmissionUrl(config.url, fail_open=config.url_fail_open))
            except ValueError as error:
                raise UsageError(f"-verify-client-url: {error}") from None
    return Admission(lists, verifiers, recheck_s=config.recheck_s, own_key=own_key)


def _bootstrap_dns(config: RelayConfig) -> BootstrapDns:
    published = [
        _named("bootstrap-dns-names", text, checked_name) for text in config.bootstrap_names
    ]
    unpublished = [
        _named("unpublished-bootstrap-dns-names", text, Unpublished.parse)
        for text in config.unpublished_bootstrap_names
    ]
    if not published and not unpublished:
        return BootstrapDns()
    # Only now: it brings dnspython.
    from fastderp.server.net.resolver import SystemResolver

    return BootstrapDns(published, unpublished, SystemResolver())


def _named(flag: str, text: str, read: Callable[[str], T]) -> T:
    """Read an item of a flag's list. Raises UsageError that quotes it."""
    try:
        return read(text)
    except ValueError as error:
        raise UsageError(f'-{flag} "{printable(text)}": {error}') from None


def _reload_rate_limit(server: Server, path: Path) -> None:
    try:
        server.set_rate_limit(RateLimit.load(path))
    except ConfigError as error:
        if shortage_of(error):
            raise
        log.error("%s; the previous limits stay in force", error)
    else:
        log.info("each client: %s", server.rate_limit)


async def _check(server: Server, admission: Admission | None) -> list[str]:
    """Return what is wrong with the relay's tables, and with whoever it asks about clients. PROTOCOL §6.9."""
    problems = server.consistency_check()
    return problems if admission is None else problems + await admission.self_test()


def _metrics(
    server: Server,
    bootstrap: BootstrapDns,
    tunnels: Tunnels | None,
    admission: Admission | None,
    stun: StunServer | None,
    certificates: ManualCertificate | AcmeCertificates | None,
) -> dict[str, Value]:
    values = server.metrics() | bootstrap.metrics()
    if tunnels is not None:
        values |= tunnels.metrics()
    if admission is not None:
        values |= admission.metrics()
    values |= stun_metrics({}) if stun is None else stun.metrics()
    if certificates is not None:
        values |= certificates.metrics()
    return values


def _announce(
    config: RelayConfig,
    server: Server,
    admission: Admission | None,
    region: RegionSettings,
    listener: Listener,
    plain: Listener | None,
    stun: StunServer | None,
    acme: AcmeCertificates | None,
) -> None:
    """Log where the relay is, its key, and which clients it admits."""
    scheme = "https" if config.tls else "http"
    served = [f"fastderp-relay {fastderp.__version__} serves {scheme} on {_places(listener)}"]
    if plain is not None:
        served.append(f"plain HTTP on {_places(plain)}")
    served.append(f"STUN on UDP {stun.addresses[0][1]}" if stun is not None else "no STUN")
    kept = f"kept in {config.key_file}" if config.key_file else "forgotten at exit"
    log.info("%s", "; ".join(served))
    log.info("public key %s, %s", server.public_key.text, kept)
    if config.idle_certificate_flags:
        log.warning(
            "plain HTTP, whatever -%s: certificates from a CA are used on port 443 only; "
            "-acme-directory, or -certmode manual, gives HTTPS on any port",
            ", -".join(config.idle_certificate_flags),
        )
    log.info("admission: %s", admission or "anybody")
    if config.admission.disallowed_app_names:
        names = ", ".join(f'"{printable(name)}"' for name in config.admission.disallowed_app_names)
        log.info("refused app names: %s", names)
    if region.keys:
        log.info("%s", region)
    if config.address_overridden:
        log.warning("-dev serves on this port whatever -a says")
    if server.rate_limit is not None:
        log.info("each client: %s", server.rate_limit)
    if config.tls and math.isfinite(config.accept_per_s) and config.accept_burst == MAX_BURST:
        log.warning("-accept-connection-limit has no effect without -accept-connection-burst")
    if not config.derp:
        log.warning("-derp=false: packets are not relayed")
    if acme is not None and config.acme is not None:
        log.info("%s", acme.summary)
        if config.acme.hostname == VENDOR_HOSTNAME and not config.acme.ip_certs:
            log.warning("%s is Tailscale's own name: say yours with -hostname", VENDOR_HOSTNAME)


def _places(listener: Listener) -> str:
    return ", ".join(listener.addresses)
