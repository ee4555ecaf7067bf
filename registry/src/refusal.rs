//! Why a request is refused: the gRPC code for machines, the faults for people.
//!
//! Every service of the plane answers with it, so that a refusal without a code of the catalogue cannot leave.

use tonic::{Code, Status};
use weft_api::fault::{Fault, faults_to_status};
use weft_policy::code::{self, CodeId};

use crate::store::StoreError;

/// A refused request. It becomes a [`Status`] at the border.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    code: Code,
    faults: Vec<Fault>,
}

impl Refusal {
    /// A refusal with one fault.
    #[must_use]
    pub fn new(code: Code, fault: Fault) -> Self {
        Self { code, faults: vec![fault] }
    }

    /// Something in the request is wrong: every fault that was found, at least one.
    #[must_use]
    pub fn invalid(faults: Vec<Fault>) -> Self {
        let unsaid = || vec![Fault::new(code::BAD_VALUE, "the request cannot be read")];
        Self { code: Code::InvalidArgument, faults: if faults.is_empty() { unsaid() } else { faults } }
    }

    /// One field of the request is wrong.
    #[must_use]
    pub fn bad_value(path: &str, what: impl Into<String>) -> Self {
        let fault = Fault::new(code::BAD_VALUE, what).at(path, None);
        Self::invalid(vec![fault.fix("compare the versions of both sides:   weft version")])
    }

    /// The caller's role does not permit it.
    #[must_use]
    pub fn not_permitted(what: impl Into<String>) -> Self {
        Self::denied(code::NOT_PERMITTED, what)
    }

    /// It is refused to this caller, for a reason with a code of its own.
    #[must_use]
    pub fn denied(id: CodeId, what: impl Into<String>) -> Self {
        Self::new(Code::PermissionDenied, catalogued(id, what))
    }

    /// A bound is reached.
    #[must_use]
    pub fn exhausted(id: CodeId, what: impl Into<String>) -> Self {
        Self::new(Code::ResourceExhausted, catalogued(id, what))
    }

    /// The gRPC code.
    #[must_use]
    pub const fn code(&self) -> Code {
        self.code
    }

    /// What is wrong; at least one.
    #[must_use]
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }
}

/// A fault with the causes and next commands that the catalogue has for it.
#[must_use]
pub fn catalogued(id: CodeId, what: impl Into<String>) -> Fault {
    let row = id.row();
    row.fix.iter().fold(Fault::new(id, what).why(row.cause), |fault, &fix| fault.fix(fix))
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        faults_to_status(refusal.code, &refusal.faults)
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let (code, id) = match &error {
            StoreError::Conflict(_) => (Code::Aborted, code::WRITE_CONFLICT),
            StoreError::ValueTooLarge { .. }
            | StoreError::TxnTooLong { .. }
            | StoreError::TxnTooLarge { .. }
            | StoreError::KeyTwice { .. }
            | StoreError::PageLimit { .. } => (Code::InvalidArgument, code::OUT_OF_BOUNDS),
            StoreError::Full { .. } | StoreError::TooManyLeases { .. } => {
                (Code::ResourceExhausted, code::STORE_FULL)
            }
            StoreError::NoLease { .. } => (Code::FailedPrecondition, code::NO_LEASE),
            StoreError::Compacted { .. } => (Code::OutOfRange, code::COMPACTED),
            StoreError::Ahead { .. } => (Code::OutOfRange, code::STORE_BEHIND),
            StoreError::Unavailable { .. } => (Code::Unavailable, code::STORE_UNAVAILABLE),
            StoreError::OutcomeUnknown { .. } => (Code::Unknown, code::OUTCOME_UNKNOWN),
            StoreError::Closed => (Code::Unavailable, code::STORE_CLOSED),
            StoreError::Refused { .. } => (Code::Unavailable, error.code()),
            StoreError::Unvouched { .. } => (Code::FailedPrecondition, code::RECORDS_REFUSED),
        };
        let mut fault = catalogued(id, error.to_string());
        if let Some(source) = std::error::Error::source(&error) {
            fault = fault.why(source.to_string());
        }
        Self::new(code, fault)
    }
}

#[cfg(test)]
mod tests {
    use weft_api::fault::status_to_faults;

    use super::*;

    #[test]
    fn a_refusal_reaches_the_other_side_with_its_code_and_next_command() {
        let status = Status::from(Refusal::from(StoreError::Closed));
        assert_eq!(status.code(), Code::Unavailable);
        let faults = status_to_faults(&status);
        assert_eq!(&*faults[0].code, code::STORE_CLOSED.as_str());
        assert!(!faults[0].why.is_empty() && !faults[0].fix.is_empty());
    }

    #[test]
    fn a_refusal_always_says_something() {
        assert_eq!(Refusal::invalid(Vec::new()).faults().len(), 1);
    }
}
