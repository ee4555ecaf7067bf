//! History: the revisions of an object, and how it stood at each.

use weft_api::{
    convert::management as convert,
    pb::management::{HistoryRequest, HistoryResponse, ObjectRevision},
};
use weft_policy::{code, model::Key};

use super::require_for;
use crate::{
    catalog::Catalog,
    confirmation::{self, Pending},
    core::Core,
    history::{
        self, Stood, before,
        record::{Before, Change, Touched},
        stands_as_left,
        trim::MAX_PER_OBJECT,
    },
    refusal::{Refusal, catalogued},
    roles::{Caller, Role},
};

pub(super) async fn history(
    core: &Core,
    caller: &Caller,
    request: &HistoryRequest,
) -> Result<HistoryResponse, Refusal> {
    let reference = request.r#ref.as_ref().ok_or_else(|| Refusal::bad_value("ref", "no object is named"))?;
    let key = convert::key(reference).map_err(|fault| Refusal::invalid(vec![fault]))?;
    require_for(caller, &key, Role::Viewer)?;
    let catalog = core.world.catalog();
    let all = Revisions::read(core).await?;
    let waiting = confirmation::all(&*core.store).await?;
    let mut revisions: Vec<_> = all.of(&key).map(|(change, object)| told(change, object, &waiting)).collect();
    revisions.extend(all.first(&key));
    if revisions.is_empty() && catalog.revision_of(&key).is_none() {
        let fault = catalogued(code::NOT_FOUND, format!("there is no {key}, and there was none"));
        return Err(Refusal::new(tonic::Code::NotFound, fault));
    }
    if let Some(wanted) = request.revision {
        revisions.retain(|revision| revision.revision == wanted);
        let Some(revision) = revisions.first_mut() else {
            return Err(gone(format!("{key} has no revision {wanted}")));
        };
        match all.at(core, &catalog, &key, wanted).await? {
            Stood::As(resource) => revision.document = Some(convert::document(&resource)),
            Stood::Absent => {}
            Stood::Gone => return Err(gone(format!("how {key} stood at revision {wanted} is not kept"))),
        }
    }
    Ok(HistoryResponse { revisions })
}

/// The refusal of a revision that is not there.
pub(super) fn gone(what: String) -> Refusal {
    Refusal::new(tonic::Code::NotFound, catalogued(code::NO_SUCH_REVISION, what))
}

fn told(change: &Change, object: &Touched, waiting: &[Pending]) -> ObjectRevision {
    let pending = waiting.iter().find(|pending| pending.change == change.number);
    ObjectRevision {
        revision: change.number,
        time: crate::timestamp::rfc3339(change.at),
        author: change.author.clone(),
        reason: change.reason.clone(),
        action: object.action.word().to_owned(),
        verb: change.verb.word().to_owned(),
        of: change.of.unwrap_or(0),
        confirm_by: pending.map(Pending::confirm_by).unwrap_or_default(),
        document: None,
    }
}

/// The whole history, as it was read.
pub(super) struct Revisions(Vec<Change>);

impl Revisions {
    pub(super) async fn read(core: &Core) -> Result<Self, Refusal> {
        Ok(Self(history::changes(&*core.store).await?))
    }

    /// The newest changes of an object, the newest first.
    fn of<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = (&'a Change, &'a Touched)> {
        let changes = self.0.iter().rev();
        changes.filter_map(|change| Some((change, change.touched(key)?))).take(MAX_PER_OBJECT)
    }

    /// How an object stood before the oldest change that is kept: revision 0, unless there was none.
    fn first(&self, key: &Key) -> Option<ObjectRevision> {
        let (_, object) = self.of(key).last()?;
        let kept = matches!(object.before, Before::Kept { .. });
        kept.then(|| ObjectRevision { action: "before".to_owned(), ..ObjectRevision::default() })
    }

    /// Whether an object has that revision.
    pub(super) fn has(&self, key: &Key, revision: u64) -> bool {
        self.of(key).any(|(change, _)| change.number == revision)
            || (revision == 0 && self.first(key).is_some())
    }

    /// How an object stood once the changes up to `revision` were made.
    pub(super) async fn at(
        &self,
        core: &Core,
        catalog: &Catalog,
        key: &Key,
        revision: u64,
    ) -> Result<Stood, Refusal> {
        let older = self.of(key).find(|(change, _)| change.number <= revision);
        let newer = self.of(key).filter(|(change, _)| change.number > revision).last();
        let stood = match newer {
            Some((change, object)) => before(&*core.store, change, object).await?,
            None => catalog.get(key).map_or(Stood::Absent, |resource| Stood::As(Box::new(resource))),
        };
        // Between two changes that are kept there may have been one that is not, or one by an agent.
        let intact = older.is_none_or(|(_, object)| match &stood {
            Stood::As(resource) => stands_as_left(object, Some(resource)),
            Stood::Absent => stands_as_left(object, None),
            Stood::Gone => true,
        });
        Ok(if intact { stood } else { Stood::Gone })
    }

    /// How an object stood before its newest change.
    pub(super) async fn previous(&self, core: &Core, key: &Key) -> Result<Stood, Refusal> {
        match self.of(key).next() {
            Some((change, object)) => Ok(before(&*core.store, change, object).await?),
            None => Err(gone(format!("no change of {key} is kept"))),
        }
    }
}
