//! One endpoint, one aioquic peer: what each frame, parameter and habit of the catalogue comes to.
//!
//! Numbers are those of RFC 9000 section 20: the error that the victim closes with is part of the outcome.

use std::time::Duration;

use serde_json::Value;
use weft_overlay::{AdmissionSettings, CloseCode, LoadSettings, TransportSettings};

use crate::lab::Bench;

const FLOW_CONTROL_ERROR: u64 = 0x03;
const STREAM_LIMIT_ERROR: u64 = 0x04;
const STREAM_STATE_ERROR: u64 = 0x05;
const FINAL_SIZE_ERROR: u64 = 0x06;
const FRAME_ENCODING_ERROR: u64 = 0x07;
const TRANSPORT_PARAMETER_ERROR: u64 = 0x08;
const CONNECTION_ID_LIMIT_ERROR: u64 = 0x09;
const PROTOCOL_VIOLATION: u64 = 0x0a;
const CRYPTO_BUFFER_EXCEEDED: u64 = 0x0d;
/// TLS alerts (RFC 9001 section 4.8): certificate_required and no_application_protocol.
const CERTIFICATE_REQUIRED: u64 = 0x100 + 116;
const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;

/// Runs each attack, checks that it ended with its code, and that the victim serves on.
fn each_ends_with(cases: &[(&str, &[u64])]) {
    let bench = Bench::start(TransportSettings::default());
    let names: Vec<&str> = cases.iter().map(|(name, _)| *name).collect();
    for (outcome, (name, codes)) in bench.attack(&names, &[]).iter().zip(cases) {
        let code = outcome["code"].as_u64();
        assert!(code.is_some_and(|code| codes.contains(&code)), "{name}: {outcome}");
    }
    bench.still_serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_01_02_no_ticket_is_given_and_nothing_is_resumed_or_sent_early() {
    let bench = Bench::start(TransportSettings::default());
    let second = bench.attack(&["early_data"], &[]).remove(0);
    assert_eq!((&second["handshake"], &second["tickets"]), (&Value::Bool(true), &Value::from(0)), "{second}");
    assert_eq!(second["resumed"], false, "{second}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_04_other_protocols_and_callers_without_certificate_are_refused() {
    each_ends_with(&[
        ("other_protocol", &[NO_APPLICATION_PROTOCOL]),
        ("no_protocol", &[NO_APPLICATION_PROTOCOL]),
        ("no_certificate", &[CERTIFICATE_REQUIRED]),
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_04_another_version_gets_short_answers_and_few_of_them() {
    let bench = Bench::start(TransportSettings::default());
    let version_2 = bench.attack(&["version_2"], &[]).remove(0);
    assert_eq!(version_2["handshake"], false, "{version_2}");
    assert!(version_2["received"].as_u64() <= version_2["sent"].as_u64(), "{version_2}");
    let many = bench.raw("versions", &["--count", "2000"]);
    assert!(many["longest"].as_u64() < Some(100), "{many}");
    // A hundred at once, and a hundred a second while the packets went out.
    let answers = many["answers"].as_u64().unwrap_or(0);
    assert!((1..=400).contains(&answers), "{many}");
    bench.still_serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_07_handshake_bytes_beyond_the_buffer_end_the_connection() {
    let bench = Bench::start(TransportSettings::default());
    let at = bench.attack(&["crypto_at_limit", "crypto_past_limit"], &[]);
    assert_eq!(at[0]["code"], Value::Null, "up to 16 KiB are kept: {}", at[0]);
    assert_eq!(at[1]["code"], CRYPTO_BUFFER_EXCEEDED, "{}", at[1]);
    let updates = bench.attack(&["key_updates"], &["--count", "300"]).remove(0);
    assert!(updates["updates"].as_u64() > Some(0), "{updates}");
    bench.still_serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn quic_06_connection_ids_beyond_the_limit_end_the_connection() {
    each_ends_with(&[
        ("ids_beyond_limit", &[CONNECTION_ID_LIMIT_ERROR]),
        ("retire_unknown", &[PROTOCOL_VIOLATION]),
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn quic_06_connection_ids_that_retire_each_other_are_excessive_load() {
    let load = LoadSettings { control_frames_per_second: 300, ..Default::default() };
    let bench = Bench::start(TransportSettings { load, ..Default::default() });
    let outcome = bench.attack(&["id_flood"], &["--count", "4000"]).remove(0);
    // The victim is told to write to IDs that the attacker does not listen to: the end is seen on its side.
    assert!(bench.victim.tunnels().is_empty(), "cut, long before the idle timeout: {outcome}");
    bench.still_serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn quic_07_path_challenges_cost_the_victim_no_more_than_the_attacker() {
    let bench = Bench::start(TransportSettings::default());
    let outcome = bench.attack(&["challenges"], &["--count", "2000"]).remove(0);
    assert!(outcome["back"].as_u64() <= outcome["out"].as_u64(), "{outcome}");
    bench.still_serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn quic_06_13_a_flood_of_pings_is_excessive_load() {
    let load = LoadSettings { control_frames_per_second: 500, ..Default::default() };
    let bench = Bench::start(TransportSettings { load, ..Default::default() });
    let outcome = bench.attack(&["pings"], &["--count", "20000"]).remove(0);
    assert_eq!(outcome["code"], CloseCode::ExcessiveLoad.number(), "{outcome}");
    bench.still_serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn quic_08_a_peer_that_goes_on_from_another_port_is_not_followed() {
    let bench = Bench::start(TransportSettings::default());
    let outcome = bench.attack(&["migrate"], &[]).remove(0);
    assert_eq!(
        (&outcome["before"], &outcome["after"]),
        (&Value::Bool(true), &Value::Bool(false)),
        "{outcome}"
    );
    bench.still_serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn quic_09_a_flood_of_empty_flows_is_excessive_load() {
    // Fewer than come in one batch: on a busy machine the attacker is too slow for a rate.
    let load = LoadSettings { flows_per_second: 40, ..Default::default() };
    let bench = Bench::start(TransportSettings { load, ..Default::default() });
    let outcome = bench.attack(&["stream_flood"], &["--count", "4000"]).remove(0);
    assert_eq!(outcome["code"], CloseCode::ExcessiveLoad.number(), "{outcome}");
    bench.still_serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn quic_10_a_flood_of_resets_is_excessive_load() {
    let load = LoadSettings { resets_per_second: 50, resets_at_once: 300, ..Default::default() };
    let bench = Bench::start(TransportSettings { load, ..Default::default() });
    let outcome = bench.attack(&["reset_flood"], &["--count", "4000"]).remove(0);
    assert_eq!(outcome["code"], CloseCode::ExcessiveLoad.number(), "{outcome}");
    bench.still_serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn quic_11_fragments_with_gaps_end_the_connection_and_overlaps_do_no_harm() {
    let bench = Bench::start(TransportSettings::default());
    let outcome = bench.attack(&["overlaps", "gaps"], &["--count", "3000"]);
    assert_eq!(outcome[0]["handshake"], true, "{}", outcome[0]);
    assert!(outcome[1]["code"].is_u64(), "more than 1,024 gaps: {}", outcome[1]);
    bench.still_serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn quic_11_a_peer_beyond_its_windows_is_cut() {
    each_ends_with(&[
        ("past_stream_window", &[FLOW_CONTROL_ERROR]),
        ("past_flow_limit", &[STREAM_LIMIT_ERROR]),
        ("final_size", &[FINAL_SIZE_ERROR]),
        ("server_stream", &[STREAM_STATE_ERROR]),
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn quic_13_pings_do_not_give_a_slow_header_more_time() {
    let header_timeout = Duration::from_secs(1);
    let bench = Bench::start(TransportSettings { header_timeout, ..Default::default() });
    let outcome = bench.attack(&["slow_header"], &["--count", "20"]).remove(0);
    let seconds = outcome["seconds"].as_f64().expect("it tried");
    assert!((0.9..3.0).contains(&seconds), "reset after its second, whatever was pinged: {outcome}");
    bench.still_serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn quic_14_15_17_frames_that_nobody_may_send_end_the_connection() {
    each_ends_with(&[
        ("datagram", &[PROTOCOL_VIOLATION]),
        ("acks_of_unsent", &[PROTOCOL_VIOLATION]),
        ("ack_ranges", &[PROTOCOL_VIOLATION, FRAME_ENCODING_ERROR]),
        ("unknown_frame", &[FRAME_ENCODING_ERROR]),
        ("cut_frame", &[FRAME_ENCODING_ERROR]),
        ("wrong_space", &[PROTOCOL_VIOLATION]),
        ("handshake_done", &[PROTOCOL_VIOLATION]),
        ("new_token", &[PROTOCOL_VIOLATION]),
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn quic_16_transport_parameters_that_are_wrong_are_refused() {
    each_ends_with(&[
        ("twice", &[TRANSPORT_PARAMETER_ERROR]),
        ("exponent", &[TRANSPORT_PARAMETER_ERROR]),
        ("ack_delay", &[TRANSPORT_PARAMETER_ERROR]),
        ("id_limit", &[TRANSPORT_PARAMETER_ERROR]),
        ("payload", &[TRANSPORT_PARAMETER_ERROR]),
        ("streams", &[TRANSPORT_PARAMETER_ERROR]),
        ("no_source_id", &[TRANSPORT_PARAMETER_ERROR]),
        ("of_a_server", &[TRANSPORT_PARAMETER_ERROR]),
        ("cut_short", &[TRANSPORT_PARAMETER_ERROR]),
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn quic_01_a_silent_caller_is_sent_no_byte_more_than_three_times_what_it_sent() {
    let bench = Bench::start(TransportSettings::default());
    // Of 1,200 bytes each, three packets are the whole budget; of more, a fourth would begin within it.
    for size in ["1200", "1201", "1252", "1452"] {
        let outcome = bench.raw("silent", &["--size", size]);
        let (sent, back) = (outcome["sent_bytes"].as_u64().unwrap(), outcome["back_bytes"].as_u64().unwrap());
        assert_eq!(sent.to_string(), size, "{outcome}");
        assert!(back > 2 * sent && back <= 3 * sent, "{outcome}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn quic_02_a_retry_token_is_good_once_here_and_now() {
    let retry_token_lifetime = Duration::from_secs(3);
    let admission = AdmissionSettings { retry_above_pending: 0, retry_token_lifetime, ..Default::default() };
    let bench = Bench::start(TransportSettings { admission, ..Default::default() });
    let outcome = bench.raw("tokens", &["--seconds", "5.1"]);
    assert_eq!((&outcome["retry"], &outcome["used"]), (&Value::Bool(true), &Value::Bool(true)), "{outcome}");
    for misuse in ["again", "elsewhere", "cut", "flipped", "made_up", "expired"] {
        assert_eq!(outcome[misuse], false, "{misuse}: {outcome}");
    }
    bench.still_serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn quic_03_18_junk_is_dropped_and_answered_by_less_than_it_is() {
    let bench = Bench::start(TransportSettings::default());
    let outcome = bench.raw("junk", &["--count", "5000"]);
    assert!(outcome["back_bytes"].as_u64() < outcome["sent_bytes"].as_u64(), "{outcome}");
    bench.still_serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn quic_20_packets_to_a_closed_connection_are_answered_by_less_than_they_are() {
    let bench = Bench::start(TransportSettings::default());
    let outcome = bench.attack(&["closed_flood"], &["--count", "2000"]).remove(0);
    assert!(outcome["back"].as_u64() < outcome["out"].as_u64(), "{outcome}");
    assert!(outcome["answers"].as_u64() < Some(200), "{outcome}");
    bench.still_serves();
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_tunnels_of_a_peer_at_limit_minus_one_limit_and_limit_plus_one() {
    let admission = AdmissionSettings { tunnels_per_peer: 3, ..Default::default() };
    let bench = Bench::start(TransportSettings { admission, ..Default::default() });
    for (count, open) in [("2", 2), ("3", 3), ("4", 3)] {
        let outcome = bench.attack(&["many"], &["--count", count]).remove(0);
        assert_eq!(outcome["open"], open, "{outcome}");
        let refused = outcome["refused"].as_array().expect("a list");
        let told = refused.iter().all(|code| code == CloseCode::TooManyTunnels.number());
        assert!(told, "{outcome}");
        bench.victim.close_where(CloseCode::Done, "", |_| true);
        bench.victim.wait_idle().await;
    }
}
