//! What must stand in the store before anybody is served: the Mesh object, and the manifests of the configuration.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::unistd::geteuid;
use tonic::Request;
use tracing::info;
use weft_api::{
    fault::{Fault, status_to_faults},
    manifest,
    pb::management::{ApplyRequest, Document, management_server::Management},
    record,
};
use weft_policy::{
    code,
    model::{DefaultAuthorization, EgressMode, Mesh, Metadata, Resource},
};

use crate::{
    core::Core,
    history::{Draft, Head, Standing, Touching, Verb},
    layout,
    management::ManagementService,
    refusal::catalogued,
    roles::{Caller, Role, Source},
    store::{Compare, Op, StoreError},
};

/// Why what is configured cannot be in force.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The store cannot be written.
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    /// The number of the newest change cannot be read.
    #[error("{}", fault.what)]
    History {
        /// Why.
        fault: Box<Fault>,
    },
    /// A manifest cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file or the directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A manifest is refused.
    #[error("{} is refused: {}", path.display(), fault.what)]
    Refused {
        /// The file.
        path: PathBuf,
        /// The first thing that is wrong with it.
        fault: Box<Fault>,
    },
}

impl BootstrapError {
    /// What to tell a person.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Store(error) => catalogued(error.code(), self.to_string()),
            Self::History { fault } => fault.as_ref().clone(),
            Self::File { .. } => catalogued(code::FILE_UNUSABLE, self.to_string()),
            Self::Refused { path, fault } => fault.as_ref().clone().why(format!("in {}", path.display())),
        }
    }
}

/// Writes the Mesh of a new store, then applies every `*.yaml`, `*.yml` and `*.json` of `manifests`, in the order of
/// their names.
///
/// # Errors
///
/// [`BootstrapError`]: the server must not serve something else than it was told to.
pub async fn run(
    core: &Core,
    management: &ManagementService,
    manifests: Option<&Path>,
) -> Result<(), BootstrapError> {
    write_mesh(core).await?;
    let Some(folder) = manifests else { return Ok(()) };
    for path in files(folder)? {
        apply(management, &path).await?;
        info!(path = %path.display(), "manifest applied");
    }
    Ok(())
}

/// A new store denies everything: to callers inside, and to the outside.
async fn write_mesh(core: &Core) -> Result<(), BootstrapError> {
    let mesh = Resource::Mesh(Mesh {
        metadata: Metadata {
            namespace: None,
            name: "mesh".parse().expect("it is a DNS label"),
            labels: std::collections::BTreeMap::new(),
            annotations: std::collections::BTreeMap::new(),
            revision: 0,
        },
        trust_domain: core.trust_domain.clone(),
        default_authorization: DefaultAuthorization::Deny,
        egress: EgressMode::Deny,
    });
    let key = layout::resource(&mesh.key());
    if core.store.get(&key).await?.is_some() {
        return Ok(());
    }
    let head = Head::read(&*core.store)
        .await
        .map_err(|refusal| BootstrapError::History { fault: Box::new(refusal.faults()[0].clone()) })?;
    let value: bytes::Bytes = record::encode_resource(&mesh).into();
    let touching = Touching { key: mesh.key(), before: Standing::Nothing, after: Some(value.clone()) };
    let draft = Draft {
        author: format!("server {}", core.instance),
        reason: "the first start of the mesh".to_owned(),
        verb: Verb::Start,
        of: None,
        objects: vec![touching],
    };
    let mut ops = vec![Op::Put { key: key.clone(), value, lease: None }, head.advance()];
    ops.extend(draft.ops(head.next(), core.clock.now(), true));
    match core.store.txn(vec![Compare::Absent(key), head.compare()], ops).await {
        Ok(revision) => core.world.wait_for(revision).await,
        // Another server was faster.
        Err(StoreError::Conflict(_)) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, BootstrapError> {
    let failed = |source| BootstrapError::File { path: folder.to_path_buf(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let kind = path.extension().and_then(|extension| extension.to_str());
        if matches!(kind, Some("yaml" | "yml" | "json")) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

async fn apply(management: &ManagementService, path: &Path) -> Result<(), BootstrapError> {
    let refused = |fault| BootstrapError::Refused { path: path.to_path_buf(), fault: Box::new(fault) };
    let text = fs::read_to_string(path)
        .map_err(|source| BootstrapError::File { path: path.to_path_buf(), source })?;
    let resources = manifest::parse(&text, None).map_err(|faults| refused(first(faults)))?;
    let document = |resource| Document { json: manifest::to_json(resource).to_string().into_bytes() };
    let documents = resources.iter().map(document).collect();
    let reason = format!("manifest {}", path.display());
    let mut request =
        Request::new(ApplyRequest { documents, reason, force: true, ..ApplyRequest::default() });
    request.extensions_mut().insert(Caller {
        identity: None,
        role: Role::Admin,
        scope: None,
        source: Source::Local { uid: geteuid().as_raw() },
        peer: None,
    });
    let applied = management.apply(request).await;
    applied.map(drop).map_err(|status| {
        let unsaid = || vec![Fault::new(code::BAD_VALUE, status.message())];
        let faults = status_to_faults(&status);
        refused(first(if faults.is_empty() { unsaid() } else { faults }))
    })
}

fn first(faults: Vec<Fault>) -> Fault {
    faults.into_iter().next().unwrap_or_else(|| Fault::new(code::BAD_VALUE, "it cannot be read"))
}
