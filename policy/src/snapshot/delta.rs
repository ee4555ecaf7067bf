//! The difference between two views.
//!
//! Law: `old.apply(&Delta::diff(&old, &new, ..)) == Ok(new)`, for any two views. A delta that does not fit the view it
//! is applied to is refused, never half applied: the holder then asks for the full view.

use std::collections::BTreeSet;

use super::view::{Revision, View, ViewKey, ViewObject};

/// What turns the view of one revision into that of another.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// The revision it starts from; 0 when it is [`Self::full`].
    pub from: Revision,
    /// The revision it leads to.
    pub to: Revision,
    /// Whether it is the whole view: what is not in it is forgotten.
    pub full: bool,
    /// Objects that are new or changed, in the order of their keys.
    pub upserts: Vec<ViewObject>,
    /// Objects that are gone, in order; empty when it is full.
    pub removes: Vec<ViewKey>,
}

/// Why a delta does not fit.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DeltaError {
    /// It starts from another revision than the one held.
    #[error("the update starts from revision {from}, but {held} is held")]
    WrongBase {
        /// Where it starts.
        from: Revision,
        /// What is held.
        held: Revision,
    },
    /// It leads back in time.
    #[error("the update leads from revision {from} back to {to}")]
    Backwards {
        /// Where it starts.
        from: Revision,
        /// Where it leads.
        to: Revision,
    },
    /// One key stands in it twice.
    #[error("{0} stands twice in the update")]
    Twice(ViewKey),
    /// It removes what is not there.
    #[error("the update removes {0}, which is not held")]
    RemovesUnknown(ViewKey),
    /// It is full and removes something.
    #[error("a full update removes {0}")]
    FullRemoves(ViewKey),
}

impl Delta {
    /// The difference from `old`, at revision `from`, to `new`, at revision `to`.
    #[must_use]
    pub fn diff(old: &View, new: &View, from: Revision, to: Revision) -> Self {
        let (mut upserts, mut removes) = (Vec::new(), Vec::new());
        // Both are in the order of their keys, so each is gone through once.
        let mut old = old.iter().peekable();
        for (key, object) in new {
            while let Some((gone, _)) = old.next_if(|(held, _)| *held < key) {
                removes.push(gone.clone());
            }
            let held = old.next_if(|(held, _)| *held == key);
            if held.is_none_or(|(_, held)| held != object) {
                upserts.push(object.clone());
            }
        }
        removes.extend(old.map(|(gone, _)| gone.clone()));
        Self { from, to, full: false, upserts, removes }
    }

    /// The whole of `view`, at revision `to`.
    #[must_use]
    pub fn full(view: &View, to: Revision) -> Self {
        let upserts = view.iter().map(|(_, object)| object.clone()).collect();
        Self { from: Revision(0), to, full: true, upserts, removes: Vec::new() }
    }

    /// Whether it changes no object.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.full && self.upserts.is_empty() && self.removes.is_empty()
    }

    /// Checks that the delta starts where the holder of `held` stands, and does not lead back.
    ///
    /// # Errors
    ///
    /// [`DeltaError::WrongBase`] or [`DeltaError::Backwards`]. A full delta may lead anywhere: only the first one after
    /// a connect is full, and a server that lies behind is told apart there.
    pub fn check_base(&self, held: Revision) -> Result<(), DeltaError> {
        if self.full {
            return Ok(());
        }
        if self.from != held {
            return Err(DeltaError::WrongBase { from: self.from, held });
        }
        if self.to < self.from {
            return Err(DeltaError::Backwards { from: self.from, to: self.to });
        }
        Ok(())
    }

    /// Checks that no key stands twice.
    fn check_keys(&self) -> Result<(), DeltaError> {
        let mut seen = BTreeSet::new();
        let keys = self.upserts.iter().map(ViewObject::key).chain(self.removes.iter().cloned());
        for key in keys {
            if !seen.insert(key.clone()) {
                return Err(DeltaError::Twice(key));
            }
        }
        Ok(())
    }
}

impl View {
    /// The view after `delta`; this one stays as it is.
    ///
    /// # Errors
    ///
    /// [`DeltaError`] when the delta does not fit: its holder has missed something. Revisions are checked by
    /// [`Delta::check_base`].
    pub fn apply(&self, delta: &Delta) -> Result<Self, DeltaError> {
        delta.check_keys()?;
        if delta.full {
            let removed = delta.removes.first().cloned();
            return removed.map_or_else(
                || Ok(delta.upserts.iter().cloned().collect()),
                |key| Err(DeltaError::FullRemoves(key)),
            );
        }
        let mut view = self.clone();
        for key in &delta.removes {
            if view.remove(key).is_none() {
                return Err(DeltaError::RemovesUnknown(key.clone()));
            }
        }
        view.extend(delta.upserts.iter().cloned());
        Ok(view)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing;

    proptest! {
        #[test]
        fn applying_a_difference_gives_the_new_view(old in testing::any_view(), new in testing::any_view()) {
            let delta = Delta::diff(&old, &new, Revision(3), Revision(7));
            prop_assert_eq!(old.apply(&delta), Ok(new.clone()));
            prop_assert_eq!(delta.check_base(Revision(3)), Ok(()));

            let full = Delta::full(&new, Revision(7));
            prop_assert_eq!(old.apply(&full), Ok(new));
        }

        #[test]
        fn a_view_differs_from_itself_in_nothing(view in testing::any_view()) {
            prop_assert!(Delta::diff(&view, &view.clone(), Revision(1), Revision(2)).is_empty());
        }

        #[test]
        fn a_difference_names_each_changed_object_once(old in testing::any_view(), new in testing::any_view()) {
            let delta = Delta::diff(&old, &new, Revision(1), Revision(2));
            prop_assert!(delta.upserts.len() + delta.removes.len() <= old.len() + new.len());
            prop_assert_eq!(delta.check_keys(), Ok(()));
        }
    }

    #[test]
    fn pol_09_a_delta_for_another_revision_is_refused() {
        let delta = Delta::diff(&View::new(), &View::new(), Revision(5), Revision(6));
        let wrong = DeltaError::WrongBase { from: Revision(5), held: Revision(4) };
        assert_eq!(delta.check_base(Revision(4)), Err(wrong));

        let back = Delta::diff(&View::new(), &View::new(), Revision(5), Revision(4));
        assert_eq!(
            back.check_base(Revision(5)),
            Err(DeltaError::Backwards { from: Revision(5), to: Revision(4) })
        );
    }

    #[test]
    fn pol_09_a_delta_that_does_not_fit_is_refused_whole() {
        let mesh: View = [testing::mesh()].into_iter().collect();
        let mut twice = Delta::full(&mesh, Revision(1));
        twice.upserts.push(testing::mesh().into());
        assert_eq!(mesh.apply(&twice), Err(DeltaError::Twice(ViewKey::Mesh)));

        let removal = Delta::diff(&mesh, &View::new(), Revision(1), Revision(2));
        assert_eq!(View::new().apply(&removal), Err(DeltaError::RemovesUnknown(ViewKey::Mesh)));

        let full = Delta { full: true, upserts: Vec::new(), ..removal };
        assert_eq!(mesh.apply(&full), Err(DeltaError::FullRemoves(ViewKey::Mesh)));
    }
}
