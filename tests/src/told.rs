//! What a person is told of an error, in each of its forms (cli.md 5.1), read back from what a program printed.
//!
//! [`Told::check`] is the contract of the output: code, what happened, why, and what to do by a command that can be
//! pasted. A log has one line for it, and a status its problems; the rest of those is in `weft explain CODE`.

use serde_json::Value;

/// In which form something was told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    /// The block on a terminal.
    Block,
    /// The object of `-o json`, or of gRPC details.
    Object,
    /// The answer of a proxy port to a program.
    Answer,
    /// A problem of `weft status`.
    Problem,
    /// One line of a log.
    Line,
}

/// One thing that was told.
#[derive(Clone, Debug)]
pub struct Told {
    /// The code, such as `W2101`.
    pub code: String,
    /// What happened.
    pub what: String,
    /// The facts.
    pub why: Vec<String>,
    /// What to do.
    pub fix: Vec<String>,
    /// Where to read on, if it is said.
    pub docs: String,
    /// How it was told.
    pub form: Form,
}

impl Told {
    fn new(form: Form, code: &str, what: &str) -> Self {
        let (code, what) = (code.to_owned(), what.trim().to_owned());
        Self { code, what, why: Vec::new(), fix: Vec::new(), docs: String::new(), form }
    }

    /// The blocks in what a command printed: `error[W2101]: …` or `warning[…]: …`, and the lines set in below it.
    pub fn in_blocks(text: &str) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        let mut part = "";
        for line in text.lines() {
            let head = line.strip_prefix("error[").or_else(|| line.strip_prefix("warning["));
            if let Some((code, what)) = head.and_then(|rest| rest.split_once("]: ")) {
                all.push(Self::new(Form::Block, code, what));
                part = "what";
                continue;
            }
            let (Some(told), Some(label), Some(text)) = (all.last_mut(), line.get(..8), line.get(8..)) else {
                part = "";
                continue;
            };
            part = match label.trim() {
                "" => part,
                label @ ("why" | "fix" | "docs") => label,
                _ => "",
            };
            match part {
                "what" => told.what = format!("{} {}", told.what, text.trim()),
                "why" => told.why.push(text.trim().to_owned()),
                "fix" => told.fix.push(text.trim().to_owned()),
                "docs" => told.docs = text.trim().to_owned(),
                _ => {}
            }
        }
        all
    }

    /// The objects of `-o json`, one a line, or the whole text as one.
    pub fn in_objects(text: &str) -> Vec<Self> {
        let whole: Option<Value> = serde_json::from_str(text).ok();
        let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        let objects = whole.into_iter().chain(lines);
        objects.filter_map(|object: Value| Self::of_value(&object, Form::Object)).collect()
    }

    /// An object with `code`, `what`, and perhaps `why`, `fix` and `docs`.
    pub fn of_value(object: &Value, form: Form) -> Option<Self> {
        let texts = |key: &str| -> Vec<String> {
            let list = object.get(key).and_then(Value::as_array).into_iter().flatten();
            list.filter_map(|text| text.as_str().map(str::to_owned)).collect()
        };
        let told = Self::new(form, object.get("code")?.as_str()?, object.get("what")?.as_str()?);
        let docs = object.get("docs").and_then(Value::as_str).unwrap_or_default().to_owned();
        Some(Self { why: texts("why"), fix: texts("fix"), docs, ..told })
    }

    /// The body of a proxy port's answer: code and what happened, then facts and commands, one a line.
    pub fn in_answer(body: &str) -> Option<Self> {
        let mut lines = body.lines();
        let (code, what) = lines.next()?.split_once(' ')?;
        let mut told = Self::new(Form::Answer, code, what);
        for line in lines.map(str::trim).filter(|line| !line.is_empty()) {
            let place = if line.contains("weft ") { &mut told.fix } else { &mut told.why };
            place.push(line.to_owned());
        }
        Some(told)
    }

    /// The problems in `weft status -o json` or `weft agent status -o json`.
    pub fn in_status(text: &str) -> Vec<Self> {
        let Ok(status) = serde_json::from_str::<Value>(text) else { return Vec::new() };
        let parts = [Some(&status), status.get("server"), status.get("agent")].into_iter().flatten();
        let problems = parts.filter_map(|part| part.get("problems")?.as_array()).flatten();
        problems.filter_map(|problem| Self::of_value(problem, Form::Problem)).collect()
    }

    /// The first line of a log, as text or as JSON, that names `code`.
    pub fn in_log(log: &str, code: &str) -> Option<Self> {
        let forms = [format!("code={code}"), format!("\"code\":\"{code}\""), format!("{code}: ")];
        let line = log.lines().find(|line| forms.iter().any(|form| line.contains(form)))?;
        Some(Self::new(Form::Line, code, line))
    }

    /// Checks that it has what its form must have.
    ///
    /// # Errors
    ///
    /// What is missing.
    pub fn check(&self) -> Result<(), String> {
        let (has_why, has_fix) = (!self.why.is_empty(), self.fix.iter().any(|fix| fix.contains("weft ")));
        let lacking = [
            (self.what.len() <= 3, "what happened"),
            (!has_why && !matches!(self.form, Form::Problem | Form::Line), "why"),
            (!has_fix && self.form != Form::Line, "a next command"),
            (
                self.form == Form::Block && !self.docs.starts_with(&format!("weft explain {}", self.code)),
                "docs",
            ),
        ];
        let lacking: Vec<&str> = lacking.into_iter().filter_map(|(is, what)| is.then_some(what)).collect();
        if lacking.is_empty() { Ok(()) } else { Err(format!("it lacks {}: {self:?}", lacking.join(" and "))) }
    }
}

/// The one of `told` that has `code`.
///
/// # Errors
///
/// Which there were instead.
pub fn with_code(told: Vec<Told>, code: &str) -> Result<Told, String> {
    let found: Vec<String> = told.iter().map(|one| format!("{} {}", one.code, one.what)).collect();
    told.into_iter().find(|one| one.code == code).ok_or_else(|| format!("no {code} among {found:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_read_back_in_its_five_parts() {
        let text = "warning: something\nerror[W5006]: cannot listen\n        on it\n  why   the port is taken\n        \
                    twice\n  fix   stop it:   weft down\n  docs  weft explain W5006          request 7\nbye\n        no\n";
        let told = Told::in_blocks(text);
        let [one] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!((one.code.as_str(), one.what.as_str()), ("W5006", "cannot listen on it"));
        assert_eq!((one.why.len(), one.fix.len()), (2, 1), "{one:?}");
        assert_eq!(one.check(), Ok(()));
    }

    #[test]
    fn what_lacks_a_part_is_told() {
        let bare = Told::in_blocks("error[W5006]: cannot listen\n").remove(0);
        assert_eq!(
            bare.check().unwrap_err().split(':').next(),
            Some("it lacks why and a next command and docs")
        );
        let answer =
            Told::in_answer("W2101 denied  a → b\n      nobody may\n      weft policy allow a b\n").unwrap();
        assert_eq!(answer.check(), Ok(()));
        let object = Told::in_objects(r#"{"code":"W1","what":"it is so","why":["x"],"fix":["weft up"]}"#);
        assert_eq!(with_code(object, "W1").unwrap().check(), Ok(()));
        assert!(with_code(Vec::new(), "W1").is_err());
    }
}
