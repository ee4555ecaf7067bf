//! What tonic refuses by itself, in the words of the catalogue (API-05).
//!
//! A request that cannot be decoded never reaches a service; tonic answers it with codes of its own choice and a text.
//! Every refusal of ours carries details, so an answer without them is tonic's: a message over the limit becomes
//! RESOURCE_EXHAUSTED, one that is no message INVALID_ARGUMENT.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use futures_util::{FutureExt, future::BoxFuture};
use http::{HeaderMap, Request, Response};
use tonic::{Code, Status, body::Body, server::NamedService};
use tower::Service;
use weft_api::channel::MAX_MESSAGE_BYTES;
use weft_policy::code;

use crate::refusal::{Refusal, catalogued};

const GRPC_STATUS: &str = "grpc-status";
const GRPC_DETAILS: &str = "grpc-status-details-bin";

/// A generated server whose own refusals speak the language of the plane.
#[derive(Clone, Debug)]
pub struct Spoken<S> {
    inner: S,
}

impl<S> Spoken<S> {
    /// Wraps a generated server.
    #[must_use]
    pub const fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S: NamedService> NamedService for Spoken<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Spoken<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.inner.call(request);
        answer
            .map(|answer| answer.map(|answer| own_words(answer.headers()).map_or(answer, Status::into_http)))
            .boxed()
    }
}

/// What is answered in place of a refusal that tonic made; `None` when the answer is a service's.
fn own_words(headers: &HeaderMap) -> Option<Status> {
    let code = Code::from_bytes(headers.get(GRPC_STATUS)?.as_bytes());
    if headers.contains_key(GRPC_DETAILS) {
        return None;
    }
    match code {
        Code::OutOfRange => {
            let what = format!("the message is larger than {MAX_MESSAGE_BYTES} bytes");
            Some(Refusal::exhausted(code::MESSAGE_TOO_LARGE, what).into())
        }
        Code::Internal => {
            let what =
                "the message cannot be decoded: it is damaged, nested too deeply, or no message at all";
            Some(Refusal::invalid(vec![catalogued(code::WRONG_TYPE, what)]).into())
        }
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::InvalidArgument
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unimplemented
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => None,
    }
}
