//! Changes that are taken back by themselves unless somebody confirms them in time.
//!
//! ```text
//! apply --confirm-within ──▶ waiting ──weft confirm──▶ kept
//!                               │
//!                               └──deadline, or confirm --abort──▶ taken back (a change of its own)
//!                                        └─refused──▶ failed: told, tried again every minute, until somebody decides
//! ```
//!
//! That a change waits is a record of the store, written in the transaction of the change and deleted in that of its
//! confirmation or of its undoing: whichever comes first is the only one, also with several servers, and a server that
//! was killed takes it back when it is up again. Taken back is what nobody has changed since.
//!
//! [`keep`] waits for the deadlines; who may confirm is [`crate::management`]'s.

pub mod keep;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use weft_policy::code;

use crate::{
    history::record::Change,
    layout,
    refusal::{Refusal, catalogued},
    roles::Role,
    store::{Compare, Op, Store, StoreError},
    timestamp::rfc3339,
};

/// The shortest time to confirm in: less is no time to try anything (decisions.md, faults).
pub const SHORTEST: Duration = Duration::from_secs(10);
/// The longest: a working day and the night after it (decisions.md, faults).
pub const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// The most changes that wait at once.
pub const MAX_WAITING: usize = 64;
/// The most of one author, so that nobody takes the places of the others.
pub const MAX_OF_AUTHOR: usize = 4;

/// A change that waits.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pending {
    /// Its number.
    pub change: u64,
    /// When it is taken back, in whole milliseconds.
    pub deadline: SystemTime,
    /// Who made it.
    pub author: String,
    /// Whether only an admin may confirm it, because only an admin could make it.
    pub needs: Role,
    /// Why it could not be taken back when it was time.
    pub failed: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawPending {
    deadline: u64,
    author: String,
    needs: String,
    #[serde(deserialize_with = "present")]
    failed: Option<String>,
}

fn present<'de, D, T>(reader: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(reader)
}

impl Pending {
    /// Its form on disk.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let since = self.deadline.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let raw = RawPending {
            deadline: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            author: self.author.clone(),
            needs: self.needs.as_str().to_owned(),
            failed: self.failed.clone(),
        };
        serde_json::to_vec(&raw).expect("texts and numbers always serialise").into()
    }

    /// Reads the one of change `change`. One that cannot be read is due at once and an admin's to decide: nothing stays
    /// in force because its deadline was lost.
    #[must_use]
    pub fn decode(change: u64, value: &[u8]) -> Self {
        let lost = || Self {
            change,
            deadline: SystemTime::UNIX_EPOCH,
            author: "unknown".to_owned(),
            needs: Role::Admin,
            failed: None,
        };
        let Ok(raw) = serde_json::from_slice::<RawPending>(value) else { return lost() };
        let deadline = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(raw.deadline));
        match (deadline, Role::person(&raw.needs)) {
            (Some(deadline), Some(needs)) => {
                Self { change, deadline, author: raw.author, needs, failed: raw.failed }
            }
            (None, _) | (_, None) => lost(),
        }
    }

    /// Writes it.
    #[must_use]
    pub fn put(&self) -> Op {
        Op::Put { key: layout::unconfirmed(self.change), value: self.encode(), lease: None }
    }

    /// Ends the waiting, if it has not ended.
    #[must_use]
    pub fn end(&self) -> (Compare, Op) {
        let key = layout::unconfirmed(self.change);
        (Compare::Present(key.clone()), Op::Delete(key))
    }

    /// When it must be confirmed by, for people.
    #[must_use]
    pub fn confirm_by(&self) -> String {
        rfc3339(self.deadline)
    }
}

/// Every change that waits, the oldest first.
///
/// # Errors
///
/// [`StoreError`] when the store cannot be read.
pub async fn all(store: &dyn Store) -> Result<Vec<Pending>, StoreError> {
    let listing = store.list_all(&layout::all_unconfirmed()).await?;
    let read =
        |entry: &crate::store::Entry| Some(Pending::decode(layout::change_number(&entry.key)?, &entry.value));
    Ok(listing.entries.iter().filter_map(read).collect())
}

/// Every change that waits, with what it did; one whose history is gone has nothing that could be taken back.
///
/// # Errors
///
/// [`StoreError`] when the store cannot be read.
pub async fn all_with_changes(store: &dyn Store) -> Result<Vec<(Pending, Option<Change>)>, StoreError> {
    let mut found = Vec::new();
    for pending in all(store).await? {
        let change = crate::history::change(store, pending.change).await?;
        found.push((pending, change));
    }
    Ok(found)
}

/// Reads how long a change may wait.
///
/// # Errors
///
/// A refusal when the time is too short or too long.
pub fn window(milliseconds: u64) -> Result<Option<Duration>, Refusal> {
    if milliseconds == 0 {
        return Ok(None);
    }
    let window = Duration::from_millis(milliseconds);
    if (SHORTEST..=LONGEST).contains(&window) {
        return Ok(Some(window));
    }
    Err(Refusal::bad_value("confirmWithinMs", "a change is to be confirmed within 10 s to 24 h"))
}

/// Refuses a further change of `author` when too many wait.
///
/// # Errors
///
/// That refusal.
pub fn room(waiting: &[Pending], author: &str) -> Result<(), Refusal> {
    let mut own: BTreeMap<&str, usize> = BTreeMap::new();
    for pending in waiting {
        *own.entry(pending.author.as_str()).or_default() += 1;
    }
    let own = own.get(author).copied().unwrap_or(0);
    if own < MAX_OF_AUTHOR && waiting.len() < MAX_WAITING {
        return Ok(());
    }
    let what = format!("{own} changes of {author} wait for their confirmation, {} in all", waiting.len());
    let fault = catalogued(code::UNCONFIRMED, what)
        .why(format!("at most {MAX_OF_AUTHOR} of one author and {MAX_WAITING} in all may wait"));
    Err(Refusal::new(tonic::Code::ResourceExhausted, fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(change: u64, author: &str) -> Pending {
        Pending {
            change,
            deadline: SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_123),
            author: author.to_owned(),
            needs: Role::Editor,
            failed: None,
        }
    }

    #[test]
    fn a_pending_change_comes_back_as_it_was_written_and_a_damaged_one_is_due() {
        let whole = Pending { failed: Some("why".to_owned()), ..pending(7, "ada") };
        assert_eq!(Pending::decode(7, &whole.encode()), whole);
        for damaged in ["", "{}", r#"{"deadline":1,"author":"a","needs":"root","failed":null}"#] {
            let read = Pending::decode(7, damaged.as_bytes());
            assert_eq!((read.deadline, read.needs), (SystemTime::UNIX_EPOCH, Role::Admin), "{damaged}");
        }
    }

    #[test]
    fn a_change_is_confirmed_within_ten_seconds_to_a_day() {
        let ok = |seconds: u64| window(seconds * 1_000).ok();
        assert_eq!(ok(0), Some(None));
        assert_eq!(ok(10), Some(Some(SHORTEST)));
        assert_eq!(ok(24 * 3600), Some(Some(LONGEST)));
        for bad in [1, 9_999, 24 * 3_600_000 + 1, u64::MAX] {
            assert!(window(bad).is_err(), "{bad} ms");
        }
    }

    #[test]
    fn nobody_takes_the_places_of_the_others() {
        let own: Vec<_> = (0..4).map(|change| pending(change, "ada")).collect();
        assert!(room(&own[..3], "ada").is_ok());
        assert!(room(&own, "ada").is_err());
        assert!(room(&own, "bob").is_ok());
        let full: Vec<_> = (0..64).map(|change| pending(change, &format!("p{change}"))).collect();
        assert!(room(&full, "ada").is_err());
        assert!(room(&full[..63], "ada").is_ok());
    }
}
