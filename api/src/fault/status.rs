//! Faults in gRPC: `google.rpc.Status` details, readable by any gRPC client.
//!
//! Each fault is an `ErrorInfo` (reason = code, metadata = the rest) followed by a `Help` with its fixes. Details travel
//! in a trailer, so they are cut to [`MAX_DETAIL_BYTES`]: the first faults whole, then the number of those left out.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};
use weft_policy::code;

use super::{Fault, Place};

/// The most bytes of details: base64 makes 8 KiB of it, half of the 16 KiB that a peer takes as headers.
pub const MAX_DETAIL_BYTES: usize = 6 * 1024;

/// The domain of our error reasons.
const DOMAIN: &str = "weft.mesh";
const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";
const HELP: &str = "type.googleapis.com/google.rpc.Help";

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// `google.rpc.ErrorInfo`.
#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(btree_map = "string, string", tag = "3")]
    metadata: BTreeMap<String, String>,
}

/// `google.rpc.Help`.
#[derive(Clone, PartialEq, Message)]
struct Help {
    #[prost(message, repeated, tag = "1")]
    links: Vec<Link>,
}

#[derive(Clone, PartialEq, Message)]
struct Link {
    #[prost(string, tag = "1")]
    description: String,
    #[prost(string, tag = "2")]
    url: String,
}

/// A status that carries `fault`.
#[must_use]
pub fn fault_to_status(grpc: Code, fault: &Fault) -> Status {
    faults_to_status(grpc, std::slice::from_ref(fault))
}

/// A status that carries `faults`, as many as fit; its message is the first one's.
#[must_use]
pub fn faults_to_status(grpc: Code, faults: &[Fault]) -> Status {
    let first = faults.first().map_or("", |fault| fault.what.as_str());
    let message: String = first.chars().take(MAX_MESSAGE_CHARS).collect();
    let mut details = Vec::new();
    let mut size = 0;
    for (index, fault) in faults.iter().enumerate() {
        let fault = &fault.completed();
        let encoded = encode(fault);
        size += encoded.iter().map(Message::encoded_len).sum::<usize>();
        if size > MAX_DETAIL_BYTES {
            details.extend(if index == 0 {
                encode(&shortened(fault))
            } else {
                encode(&omitted(faults.len() - index))
            });
            break;
        }
        details.extend(encoded);
    }
    let status = RpcStatus { code: grpc as i32, message: message.clone(), details };
    Status::with_details(grpc, message, Bytes::from(status.encode_to_vec()))
}

/// The message stands beside the details in the trailers, so it is short too.
const MAX_MESSAGE_CHARS: usize = 512;

/// What a fault too large to travel becomes.
fn shortened(fault: &Fault) -> Fault {
    let cut = |text: &str| text.chars().take(MAX_MESSAGE_CHARS).collect::<String>();
    let located = Fault::default().at(cut(fault.path()), fault.place());
    Fault {
        code: fault.code.clone(),
        what: cut(&fault.what),
        why: fault.why.iter().take(1).map(|fact| cut(fact)).collect(),
        fix: fault.fix.iter().take(1).map(|advice| cut(advice)).collect(),
        ..located
    }
}

fn omitted(count: usize) -> Fault {
    Fault::new(code::OVER_LIMIT, format!("{count} more faults are not listed"))
        .fix("mend those above and try again")
}

fn encode(fault: &Fault) -> Vec<prost_types::Any> {
    let mut metadata = BTreeMap::from([("what".to_owned(), fault.what.clone())]);
    if !fault.path().is_empty() {
        metadata.insert("path".to_owned(), fault.path().to_owned());
    }
    if let Some(place) = fault.place() {
        metadata.insert("line".to_owned(), place.line.to_string());
        metadata.insert("column".to_owned(), place.column.to_string());
    }
    if let Some(id) = &fault.request_id {
        metadata.insert("requestId".to_owned(), id.clone());
    }
    for (index, fact) in fault.why.iter().enumerate() {
        metadata.insert(format!("why.{index:03}"), fact.clone());
    }
    let info = ErrorInfo { reason: fault.code.to_string(), domain: DOMAIN.to_owned(), metadata };
    let link = |advice: &String| Link { description: advice.clone(), url: String::new() };
    let help = Help { links: fault.fix.iter().map(link).collect() };
    let any = |url: &str, value| prost_types::Any { type_url: url.to_owned(), value };
    vec![any(ERROR_INFO, info.encode_to_vec()), any(HELP, help.encode_to_vec())]
}

/// The faults that `status` carries, or one made of its gRPC code and message: never none. For those who tell people.
#[must_use]
pub fn from_status(status: &Status) -> Vec<Fault> {
    let faults = status_to_faults(status);
    if !faults.is_empty() {
        return faults;
    }
    let code = match status.code() {
        Code::Unavailable => code::SERVER_UNREACHABLE,
        Code::DeadlineExceeded | Code::Cancelled => code::DEADLINE,
        Code::Unauthenticated => code::UNAUTHENTICATED,
        Code::PermissionDenied => code::NOT_PERMITTED,
        Code::NotFound => code::NOT_FOUND,
        Code::ResourceExhausted => code::TOO_MANY_STREAMS,
        Code::Ok
        | Code::Unknown
        | Code::InvalidArgument
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss => code::UNEXPECTED_ANSWER,
    };
    let row = code.row();
    let mut fault = Fault::new(code, row.title).why(status.message());
    fault.fix = row.fix.iter().map(|line| (*line).to_owned()).collect();
    vec![fault]
}

/// The first fault that `status` carries; `None` when it is not one of ours.
#[must_use]
pub fn status_to_fault(status: &Status) -> Option<Fault> {
    status_to_faults(status).into_iter().next()
}

/// The faults that `status` carries; none when it is not one of ours. What cannot be read is left out.
#[must_use]
pub fn status_to_faults(status: &Status) -> Vec<Fault> {
    let Ok(decoded) = RpcStatus::decode(status.details()) else { return Vec::new() };
    let mut faults: Vec<Fault> = Vec::new();
    for detail in decoded.details {
        match detail.type_url.as_str() {
            ERROR_INFO => faults.extend(ErrorInfo::decode(detail.value.as_slice()).ok().and_then(decode)),
            HELP => {
                if let (Some(fault), Ok(help)) = (faults.last_mut(), Help::decode(detail.value.as_slice())) {
                    fault.fix = help.links.into_iter().map(|link| link.description).collect();
                }
            }
            _ => {}
        }
    }
    faults
}

fn decode(info: ErrorInfo) -> Option<Fault> {
    if info.domain != DOMAIN {
        return None;
    }
    let text = |name: &str| info.metadata.get(name).cloned().unwrap_or_default();
    let number = |name: &str| info.metadata.get(name).and_then(|text| text.parse().ok());
    let why = info.metadata.iter().filter(|(name, _)| name.starts_with("why.")).map(|(_, fact)| fact.clone());
    let why = why.collect();
    let place = number("line").zip(number("column")).map(|(line, column)| Place { line, column });
    // The place is among the facts already.
    let located = Fault::default().at(text("path"), place);
    let request_id = info.metadata.get("requestId").cloned();
    Some(Fault { code: info.reason.into(), what: text("what"), why, fix: Vec::new(), request_id, ..located })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(index: usize) -> Fault {
        let mut fault = Fault::new(code::UNKNOWN_FIELD, format!("unknown field {index}"))
            .why("fields here: a, b")
            .why("second")
            .fix("did you mean a?")
            .fix("see weft explain W4003")
            .at("spec.x", Some(Place { line: 3, column: 7 }));
        fault.request_id = Some("01JD".to_owned());
        fault
    }

    #[test]
    fn a_fault_comes_back_whole() {
        let status = fault_to_status(Code::InvalidArgument, &fault(1));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "unknown field 1");
        assert_eq!(status_to_fault(&status), Some(fault(1)));
    }

    #[test]
    fn many_faults_are_cut_and_the_rest_is_counted() {
        let faults: Vec<_> = (0..1_000).map(fault).collect();
        let status = faults_to_status(Code::InvalidArgument, &faults);
        assert!(status.details().len() < MAX_DETAIL_BYTES + 512);
        let back = status_to_faults(&status);
        assert_eq!(back[..5], faults[..5]);
        let left_out = 1_000 - (back.len() - 1);
        assert_eq!(back.last().unwrap().what, format!("{left_out} more faults are not listed"));
    }

    #[test]
    fn one_huge_fault_still_says_what_happened() {
        let huge = Fault::new(code::BAD_VALUE, "x".repeat(100_000)).why("y".repeat(100_000));
        let status = fault_to_status(Code::InvalidArgument, &huge);
        assert!(status.details().len() < MAX_DETAIL_BYTES);
        assert_eq!(&*status_to_fault(&status).unwrap().code, "W4016");
    }

    #[test]
    fn foreign_details_are_no_fault() {
        assert_eq!(status_to_fault(&Status::internal("x")), None);
        assert_eq!(
            status_to_fault(&Status::with_details(Code::Internal, "x", Bytes::from_static(b"\xff\xff"))),
            None
        );
    }
}
