//! What the guard says of a change, and how it is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use weft_api::{fault::Fault, pb::management::Decision};
use weft_identity::spiffe::SpiffeId;
use weft_policy::{code, name::ServiceName};

use crate::refusal::{Refusal, catalogued};

/// The most changed decisions that a dry run tells.
const MAX_TOLD: usize = 100;
/// The most services and callers that a refusal names.
const MAX_NAMED: usize = 5;

/// What a change does to live calls.
#[derive(Debug, Default)]
pub(in super::super) struct Verdict {
    /// By service, who was let in and is not any more.
    pub(super) locked_out: BTreeMap<ServiceName, Lost>,
    /// Workloads that no enrollment allows any more.
    pub(super) unenrolled: Lost,
    /// Whether there was more to judge than is judged.
    pub(super) cut: bool,
    pub(super) changed: Vec<Decision>,
    pub(super) more: u64,
}

/// The callers that a service loses.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// Those whose workloads may be read.
    named: BTreeSet<String>,
    /// How many others there are.
    unnamed: usize,
}

impl Lost {
    pub(super) fn is_empty(&self) -> bool {
        self.named.is_empty() && self.unnamed == 0
    }

    /// Adds one that may be named, or one that is only counted.
    pub(super) fn add(&mut self, who: impl fmt::Display, shown: bool) {
        if shown {
            self.named.insert(who.to_string());
        } else {
            self.unnamed += 1;
        }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = self.named.iter().take(MAX_NAMED).cloned().collect();
        match self.named.len().saturating_sub(MAX_NAMED) {
            0 => {}
            rest => parts.push(format!("{rest} more")),
        }
        match self.unnamed {
            0 => {}
            1 => parts.push("1 of another namespace".to_owned()),
            count => parts.push(format!("{count} of other namespaces")),
        }
        match parts.split_last() {
            Some((last, [])) => f.write_str(last),
            Some((last, some)) => write!(f, "{} and {last}", some.join(", ")),
            None => f.write_str("nobody"),
        }
    }
}

impl Verdict {
    /// Whether some service loses all its calls.
    pub(in super::super) fn locks_out(&self) -> bool {
        !self.locked_out.is_empty() || !self.unenrolled.is_empty()
    }

    /// That not everything was judged, as a line.
    pub(in super::super) fn unjudged(&self) -> Option<String> {
        let what = "the mesh is so large that this change was judged in part: see what it does to calls with weft policy check";
        self.cut.then(|| format!("{}: {what}", code::LOCKOUT))
    }

    /// The refusal of such a change.
    pub(in super::super) fn refusal(&self) -> Refusal {
        Refusal::new(tonic::Code::FailedPrecondition, self.fault())
    }

    /// The same as a line, led by its code.
    pub(in super::super) fn warning(&self) -> String {
        let fault = self.fault();
        let facts = fault.why.iter().map(|fact| format!("; {fact}"));
        format!("{}: {}{}", code::LOCKOUT, fault.what, facts.collect::<String>())
    }

    fn fault(&self) -> Fault {
        if self.locked_out.is_empty() {
            let what = "workloads that are registered now would have no enrollment".to_owned();
            return catalogued(code::LOCKOUT, what).why(format!("without one would be {}", self.unenrolled));
        }
        let names: Vec<_> = self.locked_out.keys().take(MAX_NAMED).map(ToString::to_string).collect();
        let rest = self.locked_out.len().saturating_sub(MAX_NAMED);
        let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
        let what = format!("every call that is made to {}{more} would be refused", names.join(", "));
        let mut fault = catalogued(code::LOCKOUT, what);
        for (service, lost) in self.locked_out.iter().take(MAX_NAMED) {
            fault = fault.why(format!("{service} is called by {lost}"));
        }
        if !self.unenrolled.is_empty() {
            fault = fault.why(format!("without an enrollment would be {}", self.unenrolled));
        }
        fault
    }

    /// The decisions that change, of a dry run, and how many more there are, be it that they are too many or that their
    /// callers may not be named.
    pub(in super::super) fn told(&self) -> (Vec<Decision>, u64) {
        (self.changed.clone(), self.more)
    }

    /// Tells a decision that changes; of a caller that may not be named only that there is one.
    pub(super) fn tell(
        &mut self,
        caller: Option<&SpiffeId>,
        service: &ServiceName,
        port: u16,
        (before, after): (bool, bool),
    ) {
        let Some(caller) = caller.filter(|_| self.changed.len() < MAX_TOLD) else {
            self.more += 1;
            return;
        };
        self.changed.push(Decision {
            source: caller.to_string(),
            service: service.to_string(),
            port: u32::from(port),
            allowed_before: before,
            allowed_after: after,
        });
    }
}
