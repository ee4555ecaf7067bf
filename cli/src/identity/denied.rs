//! `weft identity svid revoke | denied | restore`, `weft agent ban | unban`.

use std::process::ExitCode;

use serde_json::{Value, json};
use weft_api::pb::management::{DeniedEntry, DenyRequest, ListDeniedRequest, UndenyRequest};

use crate::{
    args::{
        Global,
        groups::{BanArgs, DenyArgs},
    },
    client,
    error::CliError,
    output::Output,
};

/// As many pages as the whole list may have, and one more.
const MAX_PAGES: usize = 201;

/// What is named by the arguments, as the server reads it.
fn subject(args: &DenyArgs) -> Result<String, CliError> {
    match (&args.identity, &args.serial, &args.spki) {
        (Some(identity), None, None) => Ok(identity.clone()),
        (None, Some(serial), None) => Ok(match &args.issuer {
            Some(issuer) => format!("serial:{}@{}", hex(serial), hex(issuer)),
            None => format!("serial:{}", hex(serial)),
        }),
        (None, None, Some(digest)) => Ok(format!("sha256:{}", hex(digest))),
        _ => Err(CliError::usage(
            "name one: a SPIFFE ID, a certificate's serial number, or a key",
            "weft identity svid revoke (SPIFFE_ID | --serial HEX | --spki HEX)",
        )),
    }
}

/// Hexadecimal as other tools print it: upper case, colons.
fn hex(text: &str) -> String {
    text.chars().filter(|letter| *letter != ':').collect::<String>().to_ascii_lowercase()
}

/// Revokes an identity, a certificate or a key.
pub(crate) fn revoke(args: &DenyArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    deny(&subject(args)?, "revoked", &args.reason, global, output)
}

/// Takes one off the list.
pub(crate) fn restore(args: &DenyArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    undeny(&subject(args)?, "is denied no more", &args.reason, global, output)
}

/// Bans a node.
pub(crate) fn ban(args: &BanArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    deny(&format!("node:{}", args.node), "banned", &args.reason, global, output)
}

/// Lifts the ban of a node.
pub(crate) fn unban(args: &BanArgs, global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    undeny(&format!("node:{}", args.node), "is banned no more", &args.reason, global, output)
}

fn deny(
    subject: &str,
    verb: &str,
    reason: &str,
    global: &Global,
    output: &Output,
) -> Result<ExitCode, CliError> {
    let question = format!("{subject}: refuse it everywhere and close its connections now?");
    if !global.yes && !output.confirm(&question)? {
        return Err(CliError::usage("not confirmed: nothing was changed", "repeat with --yes"));
    }
    let request = DenyRequest { subject: subject.to_owned(), reason: reason.to_owned() };
    let answer = client::block_on(global, async |client| client.deny(request).await)?;
    let entry = answer.entry.unwrap_or_default();
    if output.is_structured() {
        let mut object = entry_json(&entry);
        object["revision"] = json!(answer.revision);
        object["outcome"] = json!(answer.outcome);
        output.object(&object)?;
        return Ok(ExitCode::SUCCESS);
    }
    let until = if entry.until.is_empty() { String::new() } else { format!(", until {}", entry.until) };
    output.line(format!("{subject} {verb} (revision {}{until})", answer.revision))?;
    if entry.certificates > 0 {
        output.talk(format!("its peers refuse the {} certificates that it was issued", entry.certificates));
    }
    if subject.starts_with("spiffe://") {
        output.talk("for good, take its enrollment away as well:   weft get workloadenrollments -A");
    }
    Ok(ExitCode::SUCCESS)
}

fn undeny(
    subject: &str,
    said: &str,
    reason: &str,
    global: &Global,
    output: &Output,
) -> Result<ExitCode, CliError> {
    let request = UndenyRequest { subject: subject.to_owned(), reason: reason.to_owned() };
    let answer = client::block_on(global, async |client| client.undeny(request).await)?;
    if output.is_structured() {
        output.object(&json!({"subject": subject, "revision": answer.revision}))?;
    } else {
        output.line(format!("{subject} {said} (revision {})", answer.revision))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows the denylist.
pub(crate) fn list(global: &Global, output: &Output) -> Result<ExitCode, CliError> {
    let mut entries = Vec::new();
    let mut page_token = String::new();
    for _ in 0..MAX_PAGES {
        let request = ListDeniedRequest { page_size: 0, page_token };
        let page = client::block_on(global, async |client| client.list_denied(request).await)?;
        entries.extend(page.entries);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if output.is_structured() {
        output.object(&json!({"items": entries.iter().map(entry_json).collect::<Vec<_>>()}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let shown = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let row = |entry: DeniedEntry| {
        vec![entry.subject, shown(entry.until), entry.at, entry.author, shown(entry.reason)]
    };
    let columns = ["SUBJECT", "UNTIL", "SINCE", "AUTHOR", "REASON"];
    output.table(&columns, entries.into_iter().map(row).collect())?;
    Ok(ExitCode::SUCCESS)
}

fn entry_json(entry: &DeniedEntry) -> Value {
    json!({"subject": entry.subject, "author": entry.author, "reason": entry.reason, "at": entry.at,
           "until": entry.until, "certificates": entry.certificates})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(identity: Option<&str>, serial: Option<&str>, spki: Option<&str>) -> DenyArgs {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        DenyArgs {
            identity: owned(identity),
            serial: owned(serial),
            spki: owned(spki),
            issuer: None,
            reason: String::new(),
        }
    }

    #[test]
    fn what_is_named_is_one_thing_in_the_servers_words() {
        assert_eq!(subject(&args(Some("spiffe://a/b"), None, None)).unwrap(), "spiffe://a/b");
        assert_eq!(subject(&args(None, Some("0A:0b"), None)).unwrap(), "serial:0a0b");
        let of_issuer = DenyArgs { issuer: Some("FF".to_owned()), ..args(None, Some("0a"), None) };
        assert_eq!(subject(&of_issuer).unwrap(), "serial:0a@ff");
        assert_eq!(subject(&args(None, None, Some("AB"))).unwrap(), "sha256:ab");
        assert!(subject(&args(None, None, None)).is_err());
    }
}
