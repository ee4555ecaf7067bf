//! Calls of gRPC by curl, an implementation that knows nothing of Weft, and the error details that come back.
//!
//! The messages are written and read by hand (protobuf's wire format): what is proven is what stands on the wire, as
//! `google.rpc.Status` with `ErrorInfo` and `Help` (cli.md 5.1).

use std::fs;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};

use crate::eventually::eventually;
use crate::netns::Host;
use crate::told::{Form, Told};

/// How long a server may take to answer one of several tries.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

/// Where a call goes.
#[derive(Clone, Debug)]
pub enum Target<'a> {
    /// A Unix socket of the host.
    Socket(&'a Path),
    /// `host:port` over TLS, with the certificate and key of a PEM file.
    Tls(&'a str, &'a Path),
}

/// Makes a call and returns the errors in its answer, none when it succeeded. A server that refuses a call before it has
/// read all of it resets what is left; curl then may tell of the reset and not of the answer, and is asked again.
///
/// # Panics
///
/// If there is no answer at all.
#[track_caller]
pub fn call(host: &Host, target: &Target<'_>, method: &str, message: &[u8]) -> Vec<Told> {
    let folder = host.folder();
    let (body, heads) = (folder.join("grpc.body"), folder.join("grpc.heads"));
    let length = u32::try_from(message.len()).expect("a short message").to_be_bytes();
    let framed = [&[0], length.as_slice(), message].concat();
    fs::write(&body, framed).expect("the folder is ours");
    let curl = host.program("curl").args(["-sS", "--max-time", "10", "-X", "POST", "-o", "/dev/null", "-D"]);
    let curl = curl.arg(&heads).args(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
    let curl = curl.arg("--data-binary").arg(format!("@{}", body.display()));
    let curl = match target {
        Target::Socket(path) => curl
            .arg("--http2-prior-knowledge")
            .arg("--unix-socket")
            .arg(path)
            .arg(format!("http://local{method}")),
        Target::Tls(address, pem) => {
            let curl = curl.args(["--http2", "--tlsv1.3", "-k"]).arg("--cert").arg(pem).arg("--key").arg(pem);
            curl.arg(format!("https://{address}{method}"))
        }
    };
    let heads = eventually("an answer of gRPC", ANSWERED_WITHIN, || {
        let finished = curl.clone().run();
        let heads = fs::read_to_string(&heads).unwrap_or_default();
        if heads.contains("grpc-status") { Ok(heads) } else { Err(format!("{heads:?} {finished}")) }
    });
    let details = heads.lines().find_map(|line| line.strip_prefix("grpc-status-details-bin: "));
    details.map(|text| errors_in(&decode(text.trim()))).unwrap_or_default()
}

/// A field that is text or bytes.
pub fn bytes(field: u32, value: &[u8]) -> Vec<u8> {
    let mut out = varint(u64::from(field << 3 | LENGTH_DELIMITED));
    out.extend(varint(value.len() as u64));
    out.extend_from_slice(value);
    out
}

/// A field that is a number.
pub fn number(field: u32, value: u64) -> Vec<u8> {
    [varint(u64::from(field << 3)), varint(value)].concat()
}

/// The wire type of texts, bytes and messages.
const LENGTH_DELIMITED: u32 = 2;

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
    out
}

#[track_caller]
fn decode(text: &str) -> Vec<u8> {
    let decoded = BASE64_STANDARD.decode(text).or_else(|_| BASE64_STANDARD_NO_PAD.decode(text));
    decoded.unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The errors of a `google.rpc.Status`: each `ErrorInfo`, with the `Help` that follows it.
fn errors_in(status: &[u8]) -> Vec<Told> {
    let mut all: Vec<Told> = Vec::new();
    for detail in fields(status).into_iter().filter(|(field, _)| *field == 3) {
        let any = fields(&detail.1);
        let kind = text_of(&any, 1);
        let value =
            any.iter().find(|(field, _)| *field == 2).map(|(_, value)| value.clone()).unwrap_or_default();
        let value = fields(&value);
        if kind.ends_with("google.rpc.ErrorInfo") {
            all.push(error_info(&value));
        } else if let Some(last) = all.last_mut().filter(|_| kind.ends_with("google.rpc.Help")) {
            let links = value.iter().filter(|(field, _)| *field == 1);
            last.fix = links.map(|(_, link)| text_of(&fields(link), 1)).collect();
        }
    }
    all
}

fn error_info(info: &[(u32, Vec<u8>)]) -> Told {
    let entries = info.iter().filter(|(field, _)| *field == 3).map(|(_, entry)| fields(entry));
    let metadata: Vec<(String, String)> =
        entries.map(|entry| (text_of(&entry, 1), text_of(&entry, 2))).collect();
    let what =
        metadata.iter().find(|(key, _)| key == "what").map(|(_, what)| what.clone()).unwrap_or_default();
    let why = metadata.into_iter().filter(|(key, _)| key.starts_with("why.")).map(|(_, fact)| fact).collect();
    Told { code: text_of(info, 1), what, why, fix: Vec::new(), docs: String::new(), form: Form::Object }
}

fn text_of(message: &[(u32, Vec<u8>)], field: u32) -> String {
    let found = message.iter().find(|(number, _)| *number == field);
    found.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
}

/// The fields of a message that have a length; numbers are passed over.
fn fields(mut message: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut found = Vec::new();
    while let Some(key) = take_varint(&mut message) {
        let (field, kind) = (u32::try_from(key >> 3).unwrap_or(0), key & 7);
        match kind {
            0 => drop(take_varint(&mut message)),
            2 => {
                let Some(length) = take_varint(&mut message).and_then(|length| usize::try_from(length).ok())
                else {
                    break;
                };
                let Some((value, rest)) = message.split_at_checked(length) else { break };
                found.push((field, value.to_vec()));
                message = rest;
            }
            _ => break,
        }
    }
    found
}

fn take_varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_read_as_they_stand_on_the_wire() {
        let entry = |key: &str, value: &str| {
            bytes(3, &[bytes(1, key.as_bytes()), bytes(2, value.as_bytes())].concat())
        };
        let info = [
            bytes(1, b"W4003"),
            bytes(2, b"weft.mesh"),
            entry("what", "unknown kind"),
            entry("why.000", "misspelt"),
        ];
        let help = bytes(1, &bytes(1, b"see:   weft version"));
        let any = |url: &str, value: &[u8]| bytes(3, &[bytes(1, url.as_bytes()), bytes(2, value)].concat());
        let status = [
            number(1, 300),
            any("type.googleapis.com/google.rpc.ErrorInfo", &info.concat()),
            any("type.googleapis.com/google.rpc.Help", &help),
        ];
        let told = errors_in(&status.concat()).remove(0);
        assert_eq!((told.code.as_str(), told.what.as_str()), ("W4003", "unknown kind"));
        assert_eq!(
            (told.why, told.fix),
            (vec!["misspelt".to_owned()], vec!["see:   weft version".to_owned()])
        );
    }
}
