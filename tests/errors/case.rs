//! One code, how it is provoked, and what must be told of it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use weft_tests::told::Told;

use crate::scene::Scene;

/// How a scenario provokes its code.
type Provoke = fn(&mut Scene) -> Result<Told, String>;

/// One row of the table.
pub(crate) struct Case {
    pub(crate) code: &'static str,
    pub(crate) name: &'static str,
    provoke: Provoke,
}

/// A row.
pub(crate) const fn case(code: &'static str, name: &'static str, provoke: Provoke) -> Case {
    Case { code, name, provoke }
}

impl Case {
    /// Provokes it and checks what was told. A scenario that panics has failed, and the others still run.
    pub(crate) fn run(&self, scene: &mut Scene) -> Result<(), String> {
        let provoked = catch_unwind(AssertUnwindSafe(|| (self.provoke)(scene)));
        let told = provoked.map_err(said)??;
        if told.code != self.code {
            return Err(format!("told was {told:?}"));
        }
        told.check()?;
        told.fix.iter().try_for_each(|fix| scene.commands.check(fix))
    }
}

/// The message of a panic.
fn said(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
