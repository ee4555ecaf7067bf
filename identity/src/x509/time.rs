//! Certificate times (RFC 5280 §4.1.2.5): UTCTime to 2049, GeneralizedTime from 2050 on.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::der::{NotDer, Reader, tag};

/// Reads a `Validity`: notBefore and notAfter, whole seconds, UTC.
pub(crate) fn validity(content: &[u8]) -> Result<(SystemTime, SystemTime), NotDer> {
    let mut reader = Reader::new(content);
    let not_before = time(&mut reader)?;
    let not_after = time(&mut reader)?;
    reader.finish()?;
    Ok((not_before, not_after))
}

fn time(reader: &mut Reader<'_>) -> Result<SystemTime, NotDer> {
    let element = reader.any()?;
    let (digits, year) = match (element.tag, element.content) {
        (tag::UTC_TIME, [year @ .., _, _, _, _, _, _, _, _, _, _, b'Z']) if year.len() == 2 => {
            let short = number(year)?;
            (&element.content[2..12], if short < 50 { 2000 + short } else { 1900 + short })
        }
        (tag::GENERALIZED_TIME, [year @ .., _, _, _, _, _, _, _, _, _, _, b'Z']) if year.len() == 4 => {
            (&element.content[4..14], number(year)?)
        }
        _ => return Err(NotDer), // fractions, offsets and missing seconds are not DER
    };
    let mut parts = digits.chunks(2).map(number);
    let mut next = || parts.next().unwrap_or(Err(NotDer));
    let (month, day, hour, minute, second) = (next()?, next()?, next()?, next()?, next()?);
    let valid = (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !valid || year < 1970 {
        return Err(NotDer);
    }
    let seconds = ((days_since_epoch(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or(NotDer)
}

fn number(digits: &[u8]) -> Result<u64, NotDer> {
    digits.iter().try_fold(0, |value, digit| match digit {
        b'0'..=b'9' => Ok(value * 10 + u64::from(digit - b'0')),
        _ => Err(NotDer),
    })
}

fn days_in_month(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// Days from 1970-01-01 to a date of the Gregorian calendar not before it.
fn days_since_epoch(year: u64, month: u64, day: u64) -> u64 {
    let before = year - 1;
    let leap_days = before / 4 - before / 100 + before / 400 - (1969 / 4 - 1969 / 100 + 1969 / 400);
    let months: u64 = (1..month).map(|month| days_in_month(year, month)).sum();
    (year - 1970) * 365 + leap_days + months + day - 1
}

#[cfg(test)]
mod tests {
    use super::super::der;
    use super::*;

    #[test]
    fn clk_05_times_before_and_after_2050_are_read() {
        for (tag, text, seconds) in [
            (tag::UTC_TIME, "700101000000Z", 0),
            (tag::UTC_TIME, "380119031408Z", 2_147_483_648),
            (tag::UTC_TIME, "491231235959Z", 2_524_607_999),
            (tag::GENERALIZED_TIME, "20500101000000Z", 2_524_608_000),
            (tag::UTC_TIME, "000229120000Z", 951_825_600),
            (tag::GENERALIZED_TIME, "21000301000000Z", 4_107_542_400),
            (tag::GENERALIZED_TIME, "99991231235959Z", 253_402_300_799),
        ] {
            assert_eq!(read(tag, text), Ok(UNIX_EPOCH + Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for (tag, text) in [
            (tag::UTC_TIME, "7001010000Z"),
            (tag::UTC_TIME, "700101000000+0000"),
            (tag::UTC_TIME, "690101000000Z x"),
            (tag::UTC_TIME, "500101000000Z"),
            (tag::UTC_TIME, "230229000000Z"),
            (tag::UTC_TIME, "231301000000Z"),
            (tag::UTC_TIME, "230101240000Z"),
            (tag::UTC_TIME, "230101000060Z"),
            (tag::UTC_TIME, "23010100000aZ"),
            (tag::GENERALIZED_TIME, "20500101000000.5Z"),
            (tag::GENERALIZED_TIME, "19690101000000Z"),
            (tag::GENERALIZED_TIME, "21000229000000Z"),
            (tag::OCTET_STRING, "700101000000Z"),
        ] {
            assert_eq!(read(tag, text), Err(NotDer), "{text}");
        }
    }

    fn read(tag: u8, text: &str) -> Result<SystemTime, NotDer> {
        let one = der::element(tag, &[text.as_bytes()]);
        validity(&[one.clone(), one].concat()).map(|(not_before, _)| not_before)
    }
}
