//! Durations as people write them: `250ms`, `1.5s`, `1h30m`.
//!
//! The grammar is Gateway API's (GEP-2257) with decimal fractions; the output contract of cli.md 4.2 is seconds, `"1.5s"`.

use std::time::Duration;

/// The text is not a duration.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is not a duration: write a number with h, m, s or ms, such as 1.5s, 250ms or 1h30m")]
pub struct InvalidDuration(pub String);

/// The longest text that can be a duration.
const MAX_BYTES: usize = 40;

/// Reads a duration: one or more decimal numbers, each with its unit `h`, `m`, `s` or `ms`. No sign, no blanks; a digit
/// below a nanosecond is refused.
///
/// # Errors
///
/// [`InvalidDuration`] with the text, cut to what fits a message.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidDuration> {
    let fail = || InvalidDuration(text.chars().take(MAX_BYTES).collect());
    if text.is_empty() || text.len() > MAX_BYTES {
        return Err(fail());
    }
    let mut rest = text;
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let number = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let (digits, tail) = rest.split_at(number);
        let unit = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (unit, tail) = tail.split_at(unit);
        nanos = part(digits, unit).and_then(|part| nanos.checked_add(part)).ok_or_else(fail)?;
        rest = tail;
    }
    let seconds = u64::try_from(nanos / NANOS_PER_SECOND).map_err(|_| fail())?;
    let below = u32::try_from(nanos % NANOS_PER_SECOND).map_err(|_| fail())?;
    Ok(Duration::new(seconds, below))
}

const NANOS_PER_SECOND: u128 = 1_000_000_000;

fn part(digits: &str, unit: &str) -> Option<u128> {
    let unit: u128 = match unit {
        "h" => 3_600 * NANOS_PER_SECOND,
        "m" => 60 * NANOS_PER_SECOND,
        "s" => NANOS_PER_SECOND,
        "ms" => 1_000_000,
        _ => return None,
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let fraction = unit.checked_mul(fraction.parse().ok()?)?;
    let exact = fraction.checked_rem(scale) == Some(0);
    let whole = unit.checked_mul(whole.parse().ok()?)?;
    if exact { whole.checked_add(fraction / scale) } else { None }
}

/// Writes a duration in seconds: `1.5s`, `3600s`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    match duration.subsec_nanos() {
        0 => format!("{}s", duration.as_secs()),
        nanos => format!("{}.{}s", duration.as_secs(), format!("{nanos:09}").trim_end_matches('0')),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, millis) in [
            ("1.5s", 1_500),
            ("250ms", 250),
            ("1h30m", 5_400_000),
            ("0s", 0),
            ("0.25h", 900_000),
            ("1m1s", 61_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_duration_is_refused() {
        for text in [
            "",
            "5",
            "s",
            "-1s",
            "+1s",
            "1 s",
            "1d",
            "1.s",
            ".5s",
            "1..5s",
            "1.5",
            "1e3s",
            "1S",
            "0.0000001ms",
            "٣s",
            "99999999999999999999999999999999999h",
            "9999999999999999999h",
        ] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_written_duration_reads_the_same(seconds in 0_u64..=u64::MAX, nanos in 0_u32..1_000_000_000) {
            let duration = Duration::new(seconds, nanos);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }
}
