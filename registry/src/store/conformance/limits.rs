//! Limits of security.md 9.3, each one below, at, and one above.

use super::super::{Compare, MAX_TXN_BYTES, MAX_TXN_OPS, MAX_VALUE_BYTES};
use super::*;

pub(crate) async fn values_end_at_256_kib(mut backend: impl Backend) {
    let store = backend.open().await;
    for bytes in [0, MAX_VALUE_BYTES - 1, MAX_VALUE_BYTES] {
        let name = format!("/value/{bytes}");
        let content = Bytes::from(vec![7; bytes]);
        store.put(key(&name), content.clone(), Expected::Absent, None).await.unwrap();
        assert_eq!(get(&*store, &name).await.unwrap().value, content);
    }
    let before = revision(&*store).await;
    let content = Bytes::from(vec![7; MAX_VALUE_BYTES + 1]);
    let error = store.put(key("/too-large"), content, Expected::Anything, None).await.unwrap_err();
    assert!(matches!(&error, StoreError::ValueTooLarge { bytes: 262_145, .. }), "{error}");
    assert_eq!(error.code().as_str(), "W6010");
    assert_eq!(revision(&*store).await, before);
}

pub(crate) async fn transactions_end_at_127_operations_and_1_mib(mut backend: impl Backend) {
    let store = backend.open().await;
    let puts = |count| (0..count).map(|number| put_op(&format!("/k/{number}"), "v")).collect::<Vec<_>>();
    let absent =
        |count| (0..count).map(|number| Compare::Absent(key(&format!("/none/{number}")))).collect::<Vec<_>>();
    for count in [MAX_TXN_OPS - 1, MAX_TXN_OPS] {
        store.txn(absent(count), puts(count)).await.unwrap();
    }
    assert_eq!(names(&*store).await.len(), MAX_TXN_OPS);
    for (compares, ops) in [(absent(MAX_TXN_OPS + 1), vec![]), (vec![], puts(MAX_TXN_OPS + 1))] {
        let error = store.txn(compares, ops).await.unwrap_err();
        assert!(matches!(error, StoreError::TxnTooLong { ops: 128 }), "{error}");
    }

    let large = |bytes| {
        let full = |name: &str, bytes| Op::Put { key: key(name), value: vec![7; bytes].into(), lease: None };
        let rest = bytes - 3 * (MAX_VALUE_BYTES + 2) - 2;
        let whole = MAX_VALUE_BYTES;
        vec![full("/1", whole), full("/2", whole), full("/3", whole), full("/4", rest)]
    };
    for bytes in [MAX_TXN_BYTES - 1, MAX_TXN_BYTES] {
        store.txn(vec![], large(bytes)).await.unwrap();
    }
    let error = Txn::new(vec![], large(MAX_TXN_BYTES + 1)).unwrap_err();
    assert!(matches!(error, StoreError::TxnTooLarge { bytes: 1_048_577 }), "{error}");
}

pub(crate) async fn pages_end_at_500_entries(mut backend: impl Backend) {
    let store = backend.open().await;
    for hundred in 0..6 {
        let ops = (0..100).map(|number| put_op(&format!("/p/{hundred}{number:02}"), "v")).collect();
        store.txn(vec![], ops).await.unwrap();
    }
    let everything = Prefix::everything();
    for limit in [1, 499, 500] {
        let page = store.list(&everything, None, limit).await.unwrap();
        assert_eq!((page.entries.len(), page.next.is_some()), (limit, true));
    }
    for limit in [0, 501] {
        let error = store.list(&everything, None, limit).await.unwrap_err();
        assert!(matches!(error, StoreError::PageLimit { .. }), "{error}");
    }
}

pub(crate) async fn a_key_is_changed_once_per_transaction(mut backend: impl Backend) {
    let store = backend.open().await;
    let error = store.txn(vec![], vec![put_op("/a", "1"), Op::Delete(key("/a"))]).await.unwrap_err();
    assert!(matches!(error, StoreError::KeyTwice { .. }), "{error}");
    assert_eq!(names(&*store).await, [""; 0]);
}
