//! What a request may weigh, and what tonic refuses by itself, in the words of the catalogue (API-05).
//!
//! A request that cannot be decoded never reaches a service; tonic answers it with codes of its own choice and a text.
//! Every refusal of ours carries details, so an answer without them is tonic's: a message over the limit becomes
//! RESOURCE_EXHAUSTED, one that is no message INVALID_ARGUMENT.
//!
//! A list of empty objects grows thirtyfold when it is decoded, so 4 MiB are for the two methods that carry documents;
//! every other call that is one message has [`SMALL_BYTES`], and who may join has not more either.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};

use futures_util::{FutureExt, future::BoxFuture};
use http::{HeaderMap, Request, Response};
use tonic::{Code, Status, body::Body, server::NamedService};
use tower::Service;
use weft_api::channel::MAX_MESSAGE_BYTES;
use weft_policy::code;

use crate::refusal::{Refusal, catalogued};

const GRPC_STATUS: &str = "grpc-status";
const GRPC_DETAILS: &str = "grpc-status-details-bin";

/// What a call without documents may weigh: 128 names of three parts, or 64 services and users of a token, several
/// times. The largest that anybody sends is a signing request of 8 KiB.
pub const SMALL_BYTES: usize = 64 * 1024;
/// The methods whose requests carry documents, or many messages.
const LARGE: [&str; 3] = [
    "/weft.discovery.v1.Discovery/Stream",
    "/weft.management.v1.Management/Apply",
    "/weft.management.v1.Management/CheckPolicy",
];

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
        let small = !LARGE.contains(&request.uri().path());
        let request = if small { request.map(|body| Body::new(Weighed::new(body))) } else { request };
        let answer = self.inner.call(request);
        answer
            .map(|answer| answer.map(|answer| own_words(answer.headers()).map_or(answer, Status::into_http)))
            .boxed()
    }
}

/// A body that ends with an error when it outgrows one small message and its frame.
struct Weighed {
    body: Body,
    left: usize,
}

impl Weighed {
    const fn new(body: Body) -> Self {
        /// Compression flag and length (gRPC over HTTP/2, Length-Prefixed-Message).
        const PREFIX: usize = 5;
        Self { body, left: SMALL_BYTES + PREFIX }
    }
}

impl http_body::Body for Weighed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(data)) = &frame
            && let Some(data) = data.data_ref()
        {
            let Some(left) = self.left.checked_sub(data.remaining()) else {
                return Poll::Ready(Some(Err(too_large(SMALL_BYTES))));
            };
            self.left = left;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn too_large(limit: usize) -> Status {
    Refusal::exhausted(code::MESSAGE_TOO_LARGE, format!("the message is larger than {limit} bytes")).into()
}

/// What is answered in place of a refusal that tonic made; `None` when the answer is a service's.
fn own_words(headers: &HeaderMap) -> Option<Status> {
    let code = Code::from_bytes(headers.get(GRPC_STATUS)?.as_bytes());
    if headers.contains_key(GRPC_DETAILS) {
        return None;
    }
    match code {
        Code::OutOfRange => Some(too_large(MAX_MESSAGE_BYTES)),
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
