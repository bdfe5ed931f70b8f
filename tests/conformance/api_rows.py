"""The rows of ARCHITECTURE §8, the public names of the package, and their tests."""

from __future__ import annotations

from tests.conformance.row import row


def _of(owner: str, *names: str) -> tuple[str, ...]:
    return tuple(f"fastderp:{owner}.{name}" if owner else f"fastderp:{name}" for name in names)


API = {
    "NewClient": row(
        "a client over any stream, and its options",
        "unit/client/client::login_sends_the_client_key",
        "unit/client/client::known_server_key_saves_a_round_trip_and_its_frame_is_skipped",
        "interop/client_with_derper::client_over_streams_of_the_callers_own",
        names=_of("Client", "handshake"),
    ),
    "derphttp": row(
        "a client by URL or region that dials lazily and reconnects",
        "unit/client/http_client::nothing_is_dialled_before_the_first_use",
        "unit/client/http_client::failing_call_raises_and_the_next_one_reconnects",
        "unit/client/http_client::region_is_looked_up_on_every_connect",
        names=(*_of("", "HTTPClient"), *_of("HTTPClient", "for_region")),
    ),
    "client methods": row(
        "the methods of a client",
        "unit/client/client::every_request_is_its_frame",
        "unit/client/client::packets_arrive_with_their_source",
        "unit/client/client::iteration_ends_when_the_relay_closes_in_order",
        "unit/client/client::ping_waits_for_its_own_pong_and_returns_others",
        "unit/client/client::local_address_is_known_until_the_connection_is_over",
        "interop/client_with_derper::mesh_peers_watch_forward_and_close",
        names=tuple(
            name
            for client in ("Client", "HTTPClient")
            for name in _of(
                client,
                "send",
                "recv",
                "__aiter__",
                "forward_packet",
                "note_preferred",
                "close_peer",
                "watch_connection_changes",
                "send_ping",
                "send_pong",
                "local_addr",
                "server_public_key",
                "ping",
            )
        ),
    ),  # fmt: skip
    "messages": row(
        "the messages that a client receives",
        "unit/wire/messages::messages_of_every_release_are_parsed",
        "conformance/client::messages_cannot_be_changed",
        names=_of(
            "",
            "Message",
            "ServerInfo",
            "ReceivedPacket",
            "PeerGone",
            "PeerPresent",
            "Ping",
            "Pong",
            "KeepAlive",
            "Health",
            "ServerRestarting",
        ),
    ),  # fmt: skip
    "Conn": row(
        "any stream with asyncio's methods is accepted",
        "unit/client/client::one_object_with_both_sets_of_methods_is_a_stream_too",
        "system/relay_http::a_pair_of_streams_can_be_served_without_http",
        "system/relay_shutdown::any_object_with_the_methods_of_a_stream_is_served",
    ),
    "PacketForwarder": row(
        "packets for other keys through the caller's object",
        "system/mesh_forwarders::packets_for_a_key_elsewhere_go_to_its_forwarder",
        "system/mesh_forwarders::of_several_forwarders_the_oldest_is_used",
        "system/mesh_forwarders::a_slow_forwarder_delays_no_client",
        "system/mesh_forwarders::our_client_is_a_forwarder",
        names=(
            *_of("", "PacketForwarder"),
            *_of("Server", "add_packet_forwarder", "remove_packet_forwarder"),
        ),
    ),
    "NewServer": row(
        "an embedded relay",
        "system/relay_http::a_pair_of_streams_can_be_served_without_http",
        "system/relay_shutdown::any_object_with_the_methods_of_a_stream_is_served",
        "system/relay_shutdown::repeated_and_concurrent_closes_are_one_close",
        "system/relay_shutdown::serving_ends_with_the_relay_and_the_relay_with_serving",
        "system/relay_shutdown::websockets_get_a_going_away_close_frame",
        "system/relay_http::closing_the_relay_closes_every_connection",
        "system/relay_packets::a_receiver_that_never_reads_is_closed_at_the_write_deadline",
        names=_of("Server", "accept", "serve", "close"),
    ),
    "server settings": row(
        "keys, mesh key, verifier and write timeout are readable",
        "conformance/relay::a_server_has_its_settings_as_attributes",
        "system/relay_packets::a_write_timeout_that_is_assigned_holds_for_connected_clients",
        names=_of(
            "Server",
            "has_mesh_key",
            "mesh_key",
            "private_key",
            "public_key",
            "write_timeout",
            "login_timeout",
        ),
    ),
    "SetVerifyClient": row(
        "a verifier decides on admission",
        "system/relay_login::a_client_that_the_verifier_refuses_is_closed_and_others_are_admitted",
        "system/relay_login::a_verifier_that_fails_refuses_every_client",
        names=_of("Server", "verify"),
    ),
    "MetaCert": row(
        "the certificate that names the relay's key",
        "system/relay_http::the_chain_ends_with_the_metacert",
        "conformance/relay::the_metacert_of_a_server_names_its_key",
        names=_of("Server", "meta_cert"),
    ),
    "ConsistencyCheck": row(
        "the relay checks its own tables",
        "system/relay_noise::noise_at_every_stage_affects_no_client",
        "unit/server/observe/consistency::a_wrong_count_is_reported",
        "conformance/relay::duplicates_are_consistent",
        names=_of("Server", "consistency_check"),
    ),
    "ExpVar": row(
        "counters as a dict and as Prometheus text",
        "conformance/relay::expvar_has_the_names_of_the_reference",
        "unit/server/observe/metrics::vars_nest_the_relays_counters_under_their_internal_names",
        names=_of("Server", "expvar", "metrics"),
    ),
    "IsClientConnectedForTest": row(
        "whether a key is connected",
        "system/relay_login::a_client_logs_in_as_the_protocol_says",
        names=_of("Server", "is_client_connected"),
    ),
    "debug_traffic": row(
        "a live stream of each client's bytes",
        "system/traffic::traffic_grows_with_what_a_client_sends",
        "system/traffic::the_page_continues_until_its_reader_leaves",
        "unit/server/observe/traffic::a_round_has_the_totals_of_clients_that_moved_bytes",
        "unit/server/observe/traffic::a_line_has_derpers_format",
        names=(*_of("Server", "debug_traffic"), *_of("", "BytesSentRecv")),
    ),
    "constants": row(
        "sizes and versions",
        "conformance/client::constants_are_those_of_the_protocol",
        names=_of("", "MAX_PACKET_SIZE", "PROTOCOL_VERSION"),
    ),
    "keys": row(
        "node and mesh keys in every text form",
        "unit/wire/protocol::public_key_has_the_three_text_forms",
        "unit/wire/keys::private_key_text_round_trips_in_either_case",
        names=_of("", "NodePublic", "NodePrivate", "MeshKey"),
    ),
}
