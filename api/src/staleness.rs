//! How a server says that it answers from what it knew: its store does not answer, and what it read there has an age.
//!
//! Any answer of the management service may carry it, refusals too, so it is a header and no field of each message.

use std::time::Duration;

use http::HeaderMap;
use tonic::metadata::MetadataMap;

/// The age of an answer in milliseconds. An answer without it is current.
const HEADER: &str = "weft-stale-ms";

/// Says in the headers of an answer that it is as of `age` ago.
pub fn mark(headers: &mut MetadataMap, age: Duration) {
    let millis = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    headers.insert(HEADER, millis.into());
}

/// How old an answer is; `None` when it is current, or what stands there is no age.
#[must_use]
pub fn of(headers: &HeaderMap) -> Option<Duration> {
    headers.get(HEADER)?.to_str().ok()?.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_comes_back_and_what_is_none_is_not_taken_for_one() {
        let mut marked = MetadataMap::new();
        assert_eq!(of(&marked.clone().into_headers()), None);
        mark(&mut marked, Duration::from_millis(42_500));
        assert_eq!(of(&marked.into_headers()), Some(Duration::from_millis(42_500)));
        for broken in ["", "-1", "soon", "99999999999999999999999"] {
            let headers =
                HeaderMap::from_iter([(http::HeaderName::from_static(HEADER), broken.parse().unwrap())]);
            assert_eq!(of(&headers), None, "{broken}");
        }
    }
}
