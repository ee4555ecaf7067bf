//! Care of the denylist: what is over is forgotten, and a ban whose server died half-way is completed.

use std::{sync::Arc, time::Duration};

use tracing::{info, warn};

use super::{KEPT_AFTER, What, complete};
use crate::{
    core::Core,
    layout,
    store::{Compare, MAX_TXN_OPS, Op, StoreError},
    timestamp::unix_seconds,
};

/// How often it is looked. A minute more on the list harms nobody, and a ban is seldom cut short.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Runs for the life of the server. Cancel-safe: each change is one transaction.
pub async fn run(core: Arc<Core>) {
    loop {
        complete_bans(&core).await;
        if let Err(error) = prune(&core).await {
            warn!(%error, "ended entries of the denylist could not be forgotten");
        }
        core.clock.sleep(LOOK_EVERY).await;
    }
}

async fn complete_bans(core: &Core) {
    let catalog = core.world.catalog();
    for kept in catalog.denied().values() {
        let What::Node(node) = &kept.record.what else { continue };
        match complete(core, node, &kept.record, core.clock.now()).await {
            Ok(None) => {}
            Ok(Some(revision)) => info!(%node, %revision, "the ban of a node was completed"),
            Err(refusal) => {
                warn!(%node, why = %refusal.faults()[0], "the ban of a node could not be completed")
            }
        }
    }
}

pub(super) async fn prune(core: &Core) -> Result<(), StoreError> {
    let horizon = core.clock.now().checked_sub(KEPT_AFTER).map_or(0, unix_seconds);
    let catalog = core.world.catalog();
    let over: Vec<_> = catalog.denied().iter().filter(|(_, kept)| kept.record.is_over(horizon)).collect();
    for part in over.chunks(MAX_TXN_OPS) {
        let keys = || part.iter().map(|(id, kept)| (layout::denied(id), kept.revision));
        let compares = keys().map(|(key, mod_revision)| Compare::Unchanged { key, mod_revision }).collect();
        match core.store.txn(compares, keys().map(|(key, _)| Op::Delete(key)).collect()).await {
            // Another server was faster, or somebody renewed one; the next look takes the rest.
            Ok(_) | Err(StoreError::Conflict(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
