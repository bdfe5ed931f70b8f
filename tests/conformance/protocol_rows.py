"""The numbered lines of PROTOCOL §16 (the checks of Go's tests), further cases, their tests."""

from __future__ import annotations

from tests.conformance.row import row

PROTOCOL = {
    # Framing and client parsing
    "1": row(
        "frame headers: a type and a big-endian length, read and written",
        "unit/wire/protocol::header_is_a_type_and_a_big_endian_length",
        "property/wire_properties"
        "::frames_in_any_pieces_are_read_and_a_cut_off_end_loses_only_the_last",
        "unit/dataplane/packets::frames_cut_at_any_byte_arrive_whole_and_in_order",
    ),
    "2": row(
        "reading and writing headers and keys allocates nothing",
        not_applicable="it counts allocations of Go; the data plane reads in place, in C",
    ),
    "3": row(
        "the client understands ping, pong, health with and without text, restarting",
        "unit/wire/messages::messages_of_every_release_are_parsed",
        "interop/client_oracle::both_clients_report_the_same",
    ),
    "4": row(
        "pings and pongs are 8 bytes behind their header",
        "unit/wire/protocol::built_frames_are_the_bytes_of_the_wire",
        "unit/client/client::every_request_is_its_frame",
    ),
    "5": row(
        "the client keeps the rate of its relay, by waiting or, on request, by dropping",
        "unit/client/sending::without_a_rate_everything_is_sent_at_once",
        "unit/client/sending::the_relays_rate_is_kept_by_waiting_and_every_packet_arrives",
        "unit/client/sending::try_send_drops_packets_above_the_rate_and_returns_false",
    ),
    "6": row(
        "ClientInfo is read in any case; a malformed mesh key is an error",
        "unit/wire/login::client_info_is_read_as_leniently_as_the_reference",
        "unit/wire/login::client_info_is_read_as_strictly_as_the_reference",
        "unit/wire/login::malformed_mesh_key_is_refused_without_being_quoted",
        "interop/login_with_derper::the_same_client_infos_are_accepted",
    ),
    # Relay basics
    "7": row(
        "packets reach only their addressee, with their source",
        "system/relay_packets::packets_reach_the_addressed_peer_only_and_name_their_sender",
    ),
    "8": row(
        "data to an unknown key is not answered",
        "system/relay_packets::other_packets_to_an_absent_peer_are_not_answered",
    ),
    "9": row(
        "disco to an unknown key is answered NotHere, three at once",
        "system/relay_packets::disco_to_an_absent_peer_is_answered_not_here_three_times_at_once",
        "system/relay_packets::another_not_here_is_due_a_second_later",
    ),
    "10": row(
        "connections and homes are counted",
        "system/relay_login::a_client_logs_in_as_the_protocol_says",
        "system/relay_packets::declared_homes_are_counted",
    ),
    "11": row(
        "receivers of a peer are told once of its departure, others are not",
        "system/relay_packets::only_receivers_of_its_packets_get_peer_gone_for_a_sender",
    ),
    "12": row(
        "a receiver that does not read stalls no other client",
        "system/relay_packets"
        "::a_receiver_that_does_not_read_delays_no_other_and_loses_only_whole_packets",
        "unit/dataplane/fairness::a_stalled_reader_does_not_delay_others",
    ),
    "13": row(
        "a ping is answered", "system/relay_packets::a_ping_is_answered_with_its_first_8_bytes"
    ),
    "14": row(
        "the first message is ServerInfo",
        "system/relay_login::server_info_is_the_first_frame_even_with_busy_peers",
    ),
    # Watching and the mesh
    "15": row(
        "a watcher is told of itself, present and new clients; a second one too",
        "system/mesh_watchers::a_watcher_gets_itself_then_arrivals_and_departures",
        "system/mesh_watchers::a_second_watcher_gets_all_clients_and_the_first_gets_the_second",
    ),
    "16": row(
        "presence flags say mesh peer or regular client",
        "system/mesh_watchers::flags_show_the_kind_of_a_client",
    ),
    "17": row(
        "watchers are told that a client has left",
        "system/mesh_watchers::a_watcher_gets_itself_then_arrivals_and_departures",
        "system/mesh_watchers::departures_sent_to_watchers_are_counted",
    ),
    "18": row(
        "malformed mesh keys are refused; only the right one makes a mesh peer",
        "unit/wire/keys::malformed_mesh_key_is_refused_without_being_quoted",
        "system/relay_login::a_client_with_the_mesh_key_bypasses_the_verifier",
        "conformance/relay::only_the_relays_own_mesh_key_makes_a_mesh_peer",
        "system/mesh_watchers::without_a_mesh_key_no_client_is_a_mesh_peer",
        "system/mesh_command::an_invalid_secret_is_refused_without_being_shown",
    ),
    "19": row(
        "mesh key text: 64 digits of either case, space around them",
        "unit/wire/keys::mesh_key_is_read_with_space_around_and_in_either_case",
        "unit/wire/keys::zero_mesh_keys_are_equal_and_mean_none",
    ),
    "20": row(
        "the forwarder table",
        "unit/dataplane/mesh::the_oldest_forwarder_is_preferred_and_the_next_takes_over",
        "unit/dataplane/mesh::packets_for_a_remote_key_go_over_its_link",
        "conformance/forwarders::withdrawing_a_forwarder_of_a_local_client_leaves_it_local",
        "conformance/forwarders::a_client_that_moves_to_another_relay_is_not_gone",
        "conformance/forwarders::withdrawing_an_unannounced_key_changes_nothing",
        "system/mesh_forwarders::removing_what_was_not_added_does_nothing",
        "system/mesh_forwarders::of_several_forwarders_the_oldest_is_used",
        "system/mesh_forwarders::a_local_client_comes_before_a_forwarder_and_leaves_it_there",
        "interop/forwarding_oracle::packets_of_a_region_take_the_same_routes",
    ),
    "21": row(
        "forwarders may change while packets are forwarded",
        "conformance/forwarders::every_packet_takes_one_route_while_routes_come_and_go",
        "system/mesh_forwarders::every_packet_goes_to_exactly_one_forwarder_while_they_are_added_and_removed",
    ),
    "22": row(
        "the watch loop survives broken connections and restarts",
        "unit/client/watch::a_broken_link_withdraws_its_keys_and_begins_again",
        "interop/client_with_derper::watch_loop_finds_a_restarted_relay",
        "system/mesh_links::keys_of_a_broken_link_are_withdrawn_and_receivers_get_peer_gone",
        "conformance/client::a_link_broken_while_a_report_is_made_is_watched_anew",
    ),
    "23": row(
        "the watch loop stops at its own relay, unless the ignored key is zero",
        "unit/client/watch::a_relay_that_watches_itself_stops",
        "system/mesh_links::a_relay_recognises_itself_among_the_members",
        "conformance/client::a_zero_key_ignores_no_relay",
    ),
    "24": row(
        "the watch loop reports failed dials",
        "unit/client/watch::failed_connects_are_reported_and_repeated",
    ),
    # Duplicates
    "25": row(
        "a client that leaves is removed from all tables",
        "system/relay_login::a_client_logs_in_as_the_protocol_says",
        "conformance/duplicates::the_last_writer_is_active",
        "system/relay_noise::connections_that_end_leave_no_memory_in_use",
    ),
    "26": row(
        "a second connection of a key takes over; the gauges follow",
        "system/relay_packets::second_login_with_the_same_key_takes_over",
        "conformance/relay::duplicate_gauges_return_to_zero_when_one_connection_is_left",
    ),
    "27": row(
        "disable fighters: two that alternate are both disabled",
        "conformance/duplicates::clients_that_fight_over_a_key_are_disabled_under_that_policy",
        "unit/dataplane/duplicates"
        "::sessions_that_fight_over_a_key_are_sent_nothing_under_that_policy",
        "conformance/relay::the_policy_for_shared_keys_can_be_chosen",
    ),
    "28": row(
        "disable fighters: of three, the first to speak again disables all",
        "conformance/duplicates::clients_that_fight_over_a_key_are_disabled_under_that_policy",
    ),
    "29": row(
        "disable fighters: when the last speaker leaves, the previous one becomes active",
        "conformance/duplicates::clients_that_fight_over_a_key_are_disabled_under_that_policy",
    ),
    "30": row(
        "last writer is active, back and forth; another follows when it leaves",
        "system/relay_packets::the_last_sender_of_a_shared_key_gets_the_packets",
        "system/relay_packets"
        "::when_the_active_connection_leaves_the_previous_sender_takes_over_without_events",
        "unit/dataplane/duplicates::of_three_the_latest_remaining_sender_takes_over",
        "conformance/duplicates::the_last_writer_is_active",
    ),
    # Lookup and limits
    "31": row(
        "local beats mesh, a forwarder serves other keys, changes count at once",
        "unit/dataplane/mesh::packets_for_a_remote_key_go_over_its_link",
        "unit/dataplane/duplicates::of_two_sessions_with_one_key_the_last_to_send_gets_the_packets",
        "unit/dataplane/duplicates"
        "::sessions_that_fight_over_a_key_are_sent_nothing_under_that_policy",
    ),
    "32": row(
        "a burst passes, the rest waits, mesh peers are exempt, off by default",
        "unit/dataplane/rate_limit::a_client_over_its_rate_waits_and_loses_nothing",
        "conformance/limits::without_a_limit_no_client_waits",
        "conformance/limits"
        "::the_largest_frame_passes_the_smallest_burst_and_the_next_when_the_bucket_is_full_again",
        "unit/dataplane/rate_limit::mesh_peers_are_not_limited",
        "system/mesh_links::mesh_peers_are_not_slowed_down_by_the_rate_limit",
        "conformance/limits::a_client_that_waits_for_its_rate_can_leave",
    ),
    "33": row(
        "no wait, wait, cancelled; the burst is raised to the largest packet",
        "conformance/limits::without_a_limit_no_client_waits",
        "conformance/limits"
        "::the_largest_frame_passes_the_smallest_burst_and_the_next_when_the_bucket_is_full_again",
        "conformance/limits::a_frame_as_large_as_the_burst_is_taken_when_the_bucket_is_full",
        "conformance/limits::a_client_that_waits_for_its_rate_can_leave",
    ),
    "34": row(
        "a new rate applies to connected clients, duplicates too; 0 lifts it",
        "system/relay_rate_limit::a_new_limit_holds_for_connected_clients",
        "unit/dataplane/rate_limit::lifting_the_limit_frees_waiting_senders",
        "unit/dataplane/rate_limit::a_limit_that_changes_constantly_delays_no_client_for_long",
        "conformance/limits::both_connections_of_a_key_are_limited",
        "system/mesh_links::mesh_peers_are_not_slowed_down_by_the_rate_limit",
    ),
    "35": row(
        "the rate file",
        "unit/server/admission/limit_file::a_file_is_read_as_derper_reads_it",
        "unit/server/admission/limit_file::a_malformed_file_is_refused_by_name",
        "unit/server/admission/limit_file::a_missing_file_is_refused_by_name",
        "system/limits"
        "::the_rate_file_is_read_at_the_start_and_on_a_signal_and_a_bad_one_changes_nothing",
    ),
    "36": row(
        "the depth of the queues from the environment",
        "unit/cli/environment::a_variable_means_the_same_as_in_derper",
        "unit/cli/environment::a_malformed_variable_is_named",
        "unit/dataplane/backlog::a_queue_depth_is_how_many_packets_wait_whatever_their_size",
        "system/environment::a_queue_depth_limits_the_packets_that_wait_for_a_client",
    ),
    "37": row(
        "distinct senders of a receiver",
        "conformance/limits::distinct_senders_are_counted_once_each",
    ),
    "38": row(
        "the output of `ss` is parsed",
        not_applicable="derper runs `ss`; the relay queries the kernel itself (PROTOCOL §6.10)",
    ),
    # TLS and certificates
    "39": row(
        "the metacert",
        "unit/server/certificates/metacert::the_metacert_carries_the_relays_key_and_nothing_else",
    ),
    "40": row(
        "the chain is the certificate's and the metacert",
        "system/relay_http::the_chain_ends_with_the_metacert",
        "unit/tls/handshake::the_chain_is_presented_exactly_as_given",
        "unit/tls/handshake::one_context_serves_many_handshakes_and_may_be_dropped_meanwhile",
    ),
    "41": row(
        "an address gets a certificate that clients can pin",
        "unit/server/certificates/self_signed::an_address_without_files_gets_a_self_signed_pair",
        "unit/server/certificates/self_signed::the_printed_node_pins_the_certificate",
        "unit/net/tls::pinned_certificate_needs_no_issuer",
        "unit/tls/handshake::beside_a_pinned_certificate_only_metacerts_may_come",
        "unit/tls/handshake::a_pinned_certificate_must_match_the_name_if_there_is_one",
        "interop/certificates::a_go_client_accepts_the_pinned_certificate",
        "interop/tailnet::a_tailnet_works_through_a_pinned_relay_that_admits_only_its_nodes",
    ),
    "42": row(
        "gcp needs its account binding, in either base64",
        "unit/cli/certificates::gcp_needs_its_account_and_a_name",
        "unit/cli/certificates::gcp_takes_its_key_in_either_base64",
        "interop/acme::an_account_is_bound_where_the_ca_requires_it",
    ),
    "43": row(
        "ACME certificates for addresses",
        "unit/server/certificates/acme/provider"
        "::addresses_are_ordered_by_http_01_in_the_short_lived_profile",
        "unit/server/certificates/acme/provider::each_address_has_its_own_certificate",
        "unit/server/certificates/acme/provider::a_client_that_names_another_address_is_refused",
        "unit/server/certificates/acme/provider"
        "::beside_addresses_a_name_is_served_where_there_is_one",
        "unit/server/certificates/acme/store::a_new_process_uses_the_files_on_disk",
        "unit/server/certificates/acme/challenges::only_our_tokens_are_answered",
        "unit/cli/certificates::an_address_needs_the_flag_for_addresses",
        "unit/cli/certificates::gcp_needs_its_account_and_a_name",
        "interop/acme::the_address_of_a_connection_gets_a_short_lived_certificate",
    ),
    "44": row(
        "the vendor's host names",
        "unit/server/certificates/acme/provider"
        "::with_the_default_name_tailscales_own_names_are_served",
        "unit/server/certificates/acme/provider::with_the_default_name_others_are_not",
    ),
    "45": row(
        "TCP_USER_TIMEOUT",
        "system/relay_http::accepted_sockets_inherit_the_settings_of_the_listener",
    ),
    # HTTP
    "46": row(
        "the probes answer 200, requests without an upgrade 426",
        "unit/server/http/routes::probes_answer_200_to_any_origin",
        "unit/server/http/upgrade::other_requests_for_derp_are_answered_426",
    ),
    "47": row(
        "captive-portal challenges",
        "unit/server/http/routes::a_captive_portal_challenge_is_answered",
        "unit/server/http/routes::an_odd_challenge_gets_a_204_without_an_answer",
    ),
    "48": row("the home page", "unit/server/http/routes::the_home_page_is_the_configured_one"),
    "49": row(
        "the plain port's redirects",
        "unit/server/http/routes::the_plain_port_redirects_to_the_same_page_over_tls",
        "unit/server/http/routes::a_redirect_without_a_host_uses_the_configured_name",
    ),
    "50": row(
        "access to the debug pages",
        "unit/server/observe/metrics::the_environment_adds_an_address_and_networks",
        "unit/server/observe/metrics::a_malformed_variable_is_refused",
        "unit/server/observe/metrics::a_missing_or_empty_key_file_gives_no_access",
        "unit/server/observe/metrics::the_index_links_the_pages_and_escapes_what_it_shows",
    ),
    "51": row(
        "bootstrap DNS: the published map and unpublished names",
        "unit/server/http/bootstrap_dns"
        "::published_names_are_given_with_the_addresses_of_both_families_and_sorted",
        "unit/server/http/bootstrap_dns::an_unpublished_name_is_given_alone_and_only_on_request",
        "unit/server/http/bootstrap_dns"
        "::an_unpublished_name_without_addresses_is_a_miss_and_gets_the_published_names",
        "unit/server/http/bootstrap_dns::distinct_requested_names_are_counted_up_to_a_limit",
        "interop/bootstrap_dns::both_relays_give_the_same_answers_and_counters",
    ),
    "52": row(
        "bootstrap DNS: the gate by percentage",
        "unit/server/http/bootstrap_dns::zero_and_one_hundred_percent_need_no_address",
        "unit/server/http/bootstrap_dns"
        "::half_a_rollout_reaches_the_clients_of_the_published_sample",
        "unit/server/http/bootstrap_dns::a_share_of_addresses_is_that_share_of_clients",
        "unit/server/http/bootstrap_dns::loopback_gets_a_new_decision_each_time",
    ),
    "53": row(
        "the metrics page",
        "unit/server/observe/metrics::a_counter_is_shown_with_its_type_and_without_a_suffix",
        "unit/server/observe/metrics::drops_are_shown_by_reason_and_kind",
        "unit/server/observe/metrics::untyped_metrics_have_no_type_line",
        "unit/server/observe/metrics::every_line_is_prometheus_text",
        "interop/metrics::every_metric_of_derper_exists_with_its_type_and_labels",
        "interop/metrics::every_variable_of_derper_exists_with_its_type",
        "interop/metrics::two_clients_are_counted_alike",
    ),
    # STUN
    "54": row(
        "recognition of STUN",
        "unit/server/stun/server::valid_requests_are_answered",
        "unit/server/stun/server::other_datagrams_are_not_answered",
    ),
    "55": row(
        "requests and responses of both families",
        "unit/server/stun/server::the_published_request_gets_the_published_answer",
        "unit/server/stun/server"
        "::an_ipv6_sender_gets_family_2_and_its_address_masked_with_cookie_and_transaction",
        "unit/client/stun::every_request_is_one_to_the_relay",
        "unit/client/stun::answers_of_the_relay_are_understood",
        "unit/client/stun::answers_of_other_servers_are_understood",
        "unit/client/stun::an_ipv4_address_inside_an_ipv6_one_is_taken_out",
    ),
    "56": row(
        "SOFTWARE comes first",
        "unit/client/stun::the_request_is_the_published_one",
        "unit/client/stun::software_is_the_first_attribute_of_a_request",
    ),
    "57": row(
        "a round trip over UDP",
        "unit/server/stun/server::an_ipv4_client_of_a_dual_server_is_answered_with_family_1",
        "unit/server/stun/server::after_the_end_no_request_is_answered_and_the_port_is_free",
        "system/command::stun_is_answered_and_counted",
    ),
    # The client over HTTP, and the prober
    "58": row(
        "packets and pings through the HTTP upgrade, the local address",
        "unit/client/http_client::nothing_is_dialled_before_the_first_use",
        "unit/client/http_client::first_use_connects_with_the_request_relays_know",
        "unit/client/http_client::ping_uses_the_connection",
        "interop/client_with_derper::packets_of_any_size_arrive_with_their_source",
    ),
    "59": row(
        "a proxy is asked for the node's port",
        "unit/net/dial::regions_are_reached_through_the_proxy_of_the_environment",
    ),
    "60": row(
        "derper's prober finds everything good; large transfers arrive whole",
        "interop/region::derpprobe_finds_everything_good",
        "interop/mixed_region::derpprobe_finds_every_relay_and_every_pair_good",
        "interop/mixed_region::clients_of_every_relay_reach_each_other_and_get_departures",
        "interop/exchange::two_go_clients_exchange_100000_packets",
    ),
    # Cases beyond Go's tests
    "fast start": row(
        "a fast start pipelined in one segment",
        "system/relay_login::a_fast_start_in_one_write_needs_no_answer_and_loses_no_frame",
        "system/relay_websocket::everything_may_come_in_one_write_with_the_opening_handshake",
    ),
    "early frames": row(
        "frames between ClientInfo and ServerInfo",
        "system/relay_login::frames_directly_after_the_login_are_served_after_server_info",
    ),
    "client keys": row(
        "zero and low-order client keys",
        "system/relay_login::a_bad_login_closes_that_connection_only_and_is_counted_and_logged",
        "unit/wire/keys::no_box_exists_for_a_low_order_key",
    ),
    "wrong sizes": row(
        "each frame of a wrong size closes",
        "system/relay_packets::a_forbidden_frame_closes_its_sender_only_and_is_counted_and_logged",
        "unit/dataplane/frames::a_frame_of_a_wrong_size_closes_its_connection_only",
        "system/mesh_hostile"
        "::a_mesh_peer_that_forwards_a_frame_of_a_wrong_size_is_the_only_one_closed",
    ),
    "huge frames": row(
        "ignored frames are discarded, and close their connection above 65,568 bytes",
        "system/relay_packets::an_unknown_frame_longer_than_any_packet_closes_its_connection",
    ),
    "second departure": row(
        "a second departure is reported, too",
        "system/relay_packets::a_second_departure_is_also_reported",
    ),
    "check": row(
        "duplicates are consistent, and an inconsistency is found",
        "conformance/relay::duplicates_are_consistent",
        "unit/server/observe/consistency::a_wrong_count_is_reported",
        "unit/server/observe/consistency::a_session_without_a_route_is_reported_with_its_key",
        "system/admission::the_check_page_queries_tailscaled_each_time",
    ),
    "websocket": row(
        "fragments and long messages",
        "system/relay_websocket::message_boundaries_have_no_meaning",
        "system/relay_websocket::packets_of_64_kib_cross_in_both_directions",
        "system/relay_websocket"
        "::the_longest_message_is_accepted_and_one_byte_more_is_closed_with_1009",
        "interop/websocket::a_go_client_over_websocket_and_one_without_exchange_packets",
        "unit/client/websocket::the_boundaries_of_messages_have_no_meaning",
        "interop/websocket::our_client_over_websocket_and_one_without_exchange_packets",
    ),
    "login time": row(
        "10 s for the login",
        "system/relay_login::a_client_without_a_login_in_time_is_closed_even_if_bytes_trickle_in",
    ),
    "write time": row(
        "the write deadline",
        "system/relay_packets::a_receiver_that_never_reads_is_closed_at_the_write_deadline",
    ),
    "accept limit": row(
        "the accept limiter survives",
        "system/limits::connections_over_the_accept_limit_are_closed_and_the_relay_continues",
    ),
    "admission": row(
        "the admission matrix",
        "unit/server/admission/verifiers::an_admission_may_be_spelled_in_many_ways",
        "unit/server/admission/verifiers"
        "::any_other_answer_denies_even_when_failing_open_but_is_not_certain",
        "unit/server/admission/verifiers::admission_without_a_reachable_url_is_configurable",
        "unit/server/admission/verifiers::only_a_known_key_passes_tailscaled",
        "interop/admission_with_derper"
        "::the_certificate_of_an_admission_url_is_verified_in_the_same_way",
        "interop/tailnet::derper_and_fastderp_admit_the_same_keys_by_tailscaled",
        "unit/server/admission/admission::every_configured_check_must_agree",
        "system/relay_login::a_client_with_the_mesh_key_bypasses_the_verifier",
    ),
    "release 1.32.0": row(
        "its clients and its relay work with this relay and this client",
        "interop/oldest_release::old_clients_exchange_packets_and_get_departures",
        "interop/oldest_release::an_old_mesh_peer_watches_forwards_and_closes",
        "interop/oldest_release::our_client_works_with_the_old_relay",
    ),
}
