//! The words of etcd's API that this store uses, shorter.

use bytes::Bytes;
use weft_api::pb::etcd::{
    Compare, DeleteRangeRequest, KeyValue, PutRequest, RangeRequest, RequestOp, ResponseHeader, TxnResponse,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
    response_op::Response,
};

use super::error::Failure;

/// The key was created by the commit `revision`; 0: it does not exist.
pub(super) fn created_at(key: Bytes, revision: i64) -> Compare {
    created(key, CompareResult::Equal, revision)
}

/// The key exists.
pub(super) fn exists(key: Bytes) -> Compare {
    created(key, CompareResult::Greater, 0)
}

fn created(key: Bytes, result: CompareResult, revision: i64) -> Compare {
    Compare {
        result: result.into(),
        target: CompareTarget::Create.into(),
        key,
        target_union: Some(TargetUnion::CreateRevision(revision)),
    }
}

/// The key was last changed by the commit `revision`; 0: it does not exist.
pub(super) fn changed_at(key: Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key,
        target_union: Some(TargetUnion::ModRevision(revision)),
    }
}

pub(super) fn put(key: Bytes, value: Bytes, lease: i64) -> RequestOp {
    RequestOp { request: Some(Request::RequestPut(PutRequest { key, value, lease })) }
}

pub(super) fn delete(key: Bytes) -> RequestOp {
    RequestOp {
        request: Some(Request::RequestDeleteRange(DeleteRangeRequest { key, range_end: Bytes::new() })),
    }
}

pub(super) fn get(range: RangeRequest) -> RequestOp {
    RequestOp { request: Some(Request::RequestRange(range)) }
}

/// One key with its value.
pub(super) fn whole(key: Bytes) -> RangeRequest {
    RangeRequest { key, ..RangeRequest::default() }
}

/// One key without its value.
pub(super) fn bare(key: Bytes) -> RangeRequest {
    RangeRequest { key, keys_only: true, ..RangeRequest::default() }
}

/// Whether one key is there.
pub(super) fn count(key: Bytes) -> RangeRequest {
    RangeRequest { key, count_only: true, ..RangeRequest::default() }
}

/// What each read of a transaction has found.
pub(super) fn found(answer: &TxnResponse) -> Vec<Option<KeyValue>> {
    let read = |response: &Response| match response {
        Response::ResponseRange(range) => Some(range.kvs.first().cloned()),
        Response::ResponsePut(_) | Response::ResponseDeleteRange(_) => None,
    };
    answer.responses.iter().filter_map(|op| op.response.as_ref()).filter_map(read).collect()
}

/// Whether each read of a transaction has counted nothing.
pub(super) fn all_absent(answer: &TxnResponse) -> bool {
    let absent = |response: &Response| match response {
        Response::ResponseRange(range) => range.count == 0,
        Response::ResponsePut(_) | Response::ResponseDeleteRange(_) => true,
    };
    answer.responses.iter().filter_map(|op| op.response.as_ref()).all(absent)
}

/// The header, which etcd never leaves out.
pub(super) fn header(header: Option<&ResponseHeader>) -> Result<ResponseHeader, Failure> {
    header.copied().ok_or(Failure::Headless)
}
