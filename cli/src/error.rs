//! Errors a person can act on: code, what, why, fix, docs (cli.md 5.1), and the exit code that follows (4.3).

use std::{fmt::Display, path::Path, process::ExitCode};

use tonic::Code;
use weft_api::fault::Fault;
use weft_policy::code::{self, CodeId};

use crate::output::Output;

/// Exit codes of the command line (cli.md 4.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Exit {
    /// Wrong usage.
    Usage = 2,
    /// Not found.
    NotFound = 3,
    /// Not allowed for this user.
    NotAllowed = 4,
    /// Conflict.
    Conflict = 5,
    /// Server or agent unreachable.
    Unreachable = 6,
    /// Timed out.
    TimedOut = 7,
    /// Invalid resource.
    Invalid = 8,
    /// Internal error.
    Internal = 70,
}

impl Exit {
    /// The meaning of another weft's exit code.
    pub(crate) fn of(code: i32) -> Option<Self> {
        let all = [
            Self::Usage,
            Self::NotFound,
            Self::NotAllowed,
            Self::Conflict,
            Self::Unreachable,
            Self::TimedOut,
            Self::Invalid,
            Self::Internal,
        ];
        all.into_iter().find(|exit| *exit as i32 == code)
    }
}

/// A command that did not succeed.
#[derive(Debug)]
pub(crate) struct CliError {
    faults: Vec<Fault>,
    exit: Exit,
}

impl CliError {
    /// One fault with its exit code.
    pub(crate) fn new(exit: Exit, fault: Fault) -> Self {
        Self { faults: vec![fault], exit }
    }

    /// Several faults of one input.
    pub(crate) const fn invalid(faults: Vec<Fault>) -> Self {
        Self { faults, exit: Exit::Invalid }
    }

    /// Wrong usage that clap cannot see.
    pub(crate) fn usage(what: impl Into<String>, fix: &str) -> Self {
        Self::new(Exit::Usage, Fault::new(code::USAGE, what).fix(fix))
    }

    /// The state directory holds the identity of an agent that has joined.
    pub(crate) fn joined_already(what: impl Into<String>, fix: &str) -> Self {
        Self::new(Exit::Usage, Fault::new(code::ALREADY_JOINED, what).fix(fix))
    }

    /// Standard output could not be written.
    pub(crate) fn output(error: impl Display) -> Self {
        Self::new(
            Exit::Internal,
            Fault::new(code::OUTPUT_FAILED, format!("cannot write the output: {error}")),
        )
    }

    /// A file or directory could not be read or written.
    pub(crate) fn file(path: &Path, error: &dyn Display) -> Self {
        let fault = Fault::new(code::FILE_UNUSABLE, format!("cannot use {}", path.display()))
            .why(error.to_string())
            .fix("check that the path exists and that this user may use it");
        Self::new(Exit::Usage, fault)
    }

    /// A state directory could not be made or made private.
    pub(crate) fn state_directory(path: &Path, error: &dyn Display) -> Self {
        let fault = Fault::new(code::STATE_DIRECTORY, format!("cannot use {} for state", path.display()));
        Self::new(Exit::Usage, fault.why(error.to_string()))
    }

    /// A file could not be written; what was there before is unchanged.
    pub(crate) fn write(path: &Path, error: &dyn Display) -> Self {
        let fault = Fault::new(code::WRITE_FAILED, format!("cannot write {}", path.display()));
        Self::new(Exit::Usage, fault.why(error.to_string()))
    }

    /// The program of `weft run` could not be started, a thread or runtime could not be made.
    pub(crate) fn internal(what: impl Display) -> Self {
        Self::new(Exit::Internal, Fault::new(code::INTERNAL, what.to_string()).fix("weft status"))
    }

    /// A call was refused or failed; the server's own words when it sent them.
    pub(crate) fn from_status(status: &tonic::Status) -> Self {
        let exit = match status.code() {
            Code::NotFound => Exit::NotFound,
            Code::PermissionDenied | Code::Unauthenticated => Exit::NotAllowed,
            Code::Aborted | Code::AlreadyExists => Exit::Conflict,
            Code::Unavailable => Exit::Unreachable,
            Code::DeadlineExceeded | Code::Cancelled => Exit::TimedOut,
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange | Code::ResourceExhausted => {
                Exit::Invalid
            }
            Code::Ok | Code::Unknown | Code::Unimplemented | Code::Internal | Code::DataLoss => {
                Exit::Internal
            }
        };
        Self { faults: weft_api::fault::from_status(status), exit }
    }

    /// The same error with one more fault.
    pub(crate) fn and(mut self, fault: Fault) -> Self {
        self.faults.push(fault);
        self
    }

    /// Whether the first fault is that of the catalogue.
    pub(crate) fn has(&self, code: CodeId) -> bool {
        self.faults.first().is_some_and(|fault| &*fault.code == code.as_str())
    }

    /// Whether the other side could not be reached.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.exit == Exit::Unreachable
    }

    /// The exit code.
    #[cfg(test)]
    pub(crate) const fn exit(&self) -> Exit {
        self.exit
    }

    /// The faults, to show elsewhere.
    pub(crate) fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// Prints the error where it belongs and gives the exit code.
    pub(crate) fn report(&self, output: &Output) -> ExitCode {
        for fault in &self.faults {
            output.fault(fault);
        }
        ExitCode::from(self.exit as u8)
    }
}

impl From<tonic::Status> for CliError {
    fn from(status: tonic::Status) -> Self {
        Self::from_status(&status)
    }
}
