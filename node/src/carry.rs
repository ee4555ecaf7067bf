//! Joins a decided flow to the relay: what cuts it, what it is counted in, what its end means.

use std::{sync::Arc, time::Duration};

use weft_overlay::{ResetCode, StreamError, TunnelStream};

use crate::{
    access::Record,
    app::AppStream,
    drain::Phase,
    error::FlowError,
    flows::Cut,
    outbound::standing::Standing,
    own_sockets::OwnStream,
    relay::{self, End, Relay, Side, Transfer},
    shared::Shared,
};

/// Ends when the flow must: the rules refuse it now, or the agent's drain has reached its deadline.
async fn cut_by(shared: &Shared, cuts: &[&Cut]) -> End {
    let mut drain = shared.drain.watch();
    let by_rules = async {
        let waits = cuts.iter().map(|cut| Box::pin(cut.cut()));
        futures_util::future::select_all(waits).await.0
    };
    End::Cut(tokio::select! {
        denial = by_rules, if !cuts.is_empty() => match denial {
            Some(_) => ResetCode::PolicyChanged,
            None if cuts.iter().any(|cut| cut.is_by_rule()) => ResetCode::PolicyChanged,
            None => cuts.iter().find_map(|cut| cut.code()).unwrap_or(ResetCode::Drain),
        },
        () = drain.reached(Phase::Cut) => ResetCode::Drain,
    })
}

fn settings(shared: &Shared, side: Side, idle: Duration) -> Relay {
    let meter = Arc::new(shared.report.metrics.meter());
    Relay { side, idle, meter, clock: shared.clock.clone() }
}

/// Between a program here that called and a tunnel. A refusal that came before any byte, and an answer that never came,
/// are told to the program in its own protocol; what the other agent said with its acceptance is noted in `record`.
pub(crate) async fn caller_to_tunnel(
    shared: &Shared,
    mut app: AppStream,
    (mut stream, mut standing): (TunnelStream, Standing),
    idle: Duration,
    cut: &Cut,
    record: &mut Record,
) -> Result<Transfer, FlowError> {
    if let Err(source) = app.established().await {
        stream.abort(ResetCode::Cancelled);
        return Err(FlowError::ProgramGone(source));
    }
    let relay = settings(shared, Side::Caller, idle);
    let (flow, cuts) = (stream.handle(), [cut]);
    let stop = async {
        tokio::select! {
            end = cut_by(shared, &cuts) => end,
            end = standing.watch(shared, &flow) => end,
        }
    };
    let transfer = relay::both_ways(&mut app, &mut stream, &relay, stop).await;
    if let Some(accepted) = stream.told() {
        record.accepted(accepted);
    }
    if let Some(error) = standing.ended(shared, &transfer.end) {
        app.refuse(&error.fault()).await;
        return Err(error);
    }
    match transfer.end {
        End::Far(StreamError::Refused(refused)) if transfer.received_bytes == 0 => {
            let error = FlowError::Refused(refused);
            app.refuse(&error.fault()).await;
            Err(error)
        }
        End::Clean
        | End::App(_)
        | End::Neighbour(_)
        | End::Far(_)
        | End::Stalled
        | End::Exchange(_)
        | End::Idle
        | End::Unanswered
        | End::Cut(_) => {
            answer_instead(app, &transfer.end).await;
            Ok(transfer)
        }
    }
}

/// A program that waits for the response to its request is told why none comes, as by any gateway (RFC 9110 §15.6).
async fn answer_instead(app: AppStream, end: &End) {
    if let Some(fault) = end.fault().filter(|_| app.awaits_response()) {
        app.refuse(&fault).await;
    }
}

/// Between a tunnel and a program here that serves.
pub(crate) async fn tunnel_to_program(
    shared: &Shared,
    io: OwnStream,
    mut stream: TunnelStream,
    idle: Duration,
    cut: &Cut,
) -> Transfer {
    let (io, _mark) = io.into_parts();
    let mut app = AppStream::raw(io);
    let relay = settings(shared, Side::Service, idle);
    relay::both_ways(&mut app, &mut stream, &relay, cut_by(shared, &[cut])).await
}

/// Between two programs of this host, or one and a destination outside the mesh.
pub(crate) async fn within_host(
    shared: &Shared,
    mut app: AppStream,
    io: OwnStream,
    idle: Duration,
    cuts: &[&Cut],
) -> Result<Transfer, FlowError> {
    if let Err(source) = app.established().await {
        return Err(FlowError::ProgramGone(source));
    }
    let (io, _mark) = io.into_parts();
    let mut other = AppStream::raw(io);
    let relay = settings(shared, Side::Caller, idle);
    let transfer = relay::within_host(&mut app, &mut other, &relay, cut_by(shared, cuts)).await;
    answer_instead(app, &transfer.end).await;
    Ok(transfer)
}
