//! An independent peer in good order: QUIC-21 of the catalogue, over networks that do their worst.
//!
//! | case of the interop matrix | here |
//! |---|---|
//! | handshake, transfer, multiplexing, chacha20, keyupdate | carried, below |
//! | handshakeloss, transferloss, handshakecorruption, transfercorruption | carried, below: one datagram in ten, both ways |
//! | blackhole | `datapath.rs`, `quic_19_…` |
//! | retry, amplificationlimit | [`super::frames`], QUIC-01 and QUIC-02 |
//! | resumption, zerortt | a full handshake, nothing early: [`super::frames`], TLS-01 and TLS-02 |
//! | v2, http3 | refused: [`super::frames`], TLS-04 |
//! | rebind-port, rebind-addr, connectionmigration | refused between nodes: [`super::frames`], QUIC-08 |

use serde_json::Value;
use weft_overlay::TransportSettings;
use weft_tests::chance::Chance;

use crate::lab::Bench;

/// Runs each case, and checks that all its flows came back whole.
fn each_is_carried(cases: &[(&str, u64)]) -> Vec<Value> {
    let bench = Bench::start(TransportSettings::default());
    let seed = Chance::new().seed();
    let names: Vec<&str> = cases.iter().map(|(name, _)| *name).collect();
    let outcomes = bench.attack(&names, &["--seed", &(seed % 1_000_000).to_string()]);
    for (outcome, (name, flows)) in outcomes.iter().zip(cases) {
        println!("{name}: {} s", outcome["seconds"]);
        assert_eq!(outcome["whole"], *flows, "{name}, seed {seed}: {outcome}");
    }
    outcomes
}

#[tokio::test(flavor = "multi_thread")]
async fn quic_21_an_independent_peer_is_served_in_every_way_that_is_offered() {
    let outcomes =
        each_is_carried(&[("transfer", 1), ("multiplexing", 100), ("chacha20", 1), ("key_update", 1)]);
    assert_eq!(outcomes[2]["cipher"], "CHACHA20_POLY1305_SHA256", "{}", outcomes[2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn quic_21_handshakes_and_transfers_survive_loss_and_corruption() {
    each_is_carried(&[("loss", 1), ("corruption", 1), ("loss", 1), ("corruption", 1)]);
}
