//! Separates Rust source into code and comments, as far as the checks need it.
//!
//! Owns a small scanner, not a parser: it knows strings, raw strings, characters, lifetimes and
//! nested comments. What it blanks out keeps its lines, so positions stay true.

/// One Rust file, split by [`split`]. Both texts have the line breaks of the original.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Split {
    /// The code, with comments and the insides of string and character literals blanked.
    pub code: String,
    /// The text of comments, with everything else blanked.
    pub comments: String,
}

/// Splits `source` into code and comments.
pub fn split(source: &str) -> Split {
    let mut scanner = Scanner { rest: source, code: String::new(), comments: String::new() };
    while !scanner.rest.is_empty() {
        scanner.step();
    }
    Split { code: scanner.code, comments: scanner.comments }
}

/// Blanks every item that stands under `#[cfg(test)]` in `code` (an output of [`split`]).
///
/// Rules for production code do not bind the tests beside it: a test may read a clock to have a
/// base for its own time. `mod tests;` is blanked too; see [`test_modules`] for its file.
pub fn without_tests(code: &str) -> String {
    let mut kept = String::new();
    let mut rest = code;
    while let Some(start) = rest.find(TEST_ATTRIBUTE) {
        let (before, item) = rest.split_at(start);
        kept.push_str(before);
        let end = item_end(item);
        kept.extend(item[..end].chars().map(blank));
        rest = &item[end..];
    }
    kept.push_str(rest);
    kept
}

/// Names of the modules that `code` declares as `#[cfg(test)] mod name;`.
pub fn test_modules(code: &str) -> Vec<String> {
    let after_attribute = code.split(TEST_ATTRIBUTE).skip(1);
    after_attribute
        .filter_map(|item| {
            let declaration = item[..item_end(item)].strip_suffix(';')?.trim();
            let name = declaration.rsplit_once("mod ")?.1;
            name.chars().all(is_word).then(|| name.to_owned())
        })
        .collect()
}

/// Byte offsets of `word` in `code` where it is not part of a longer word.
pub fn find_word<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

/// The line number, from 1, of the byte offset `at` in `text`.
pub fn line_of(text: &str, at: usize) -> usize {
    1 + text[..at].matches('\n').count()
}

const TEST_ATTRIBUTE: &str = "#[cfg(test)]";

struct Scanner<'a> {
    rest: &'a str,
    code: String,
    comments: String,
}

impl Scanner<'_> {
    fn step(&mut self) {
        let after_word = self.code.chars().next_back().is_some_and(is_word);
        if self.rest.starts_with("//") {
            let end = self.rest.find('\n').unwrap_or(self.rest.len());
            self.comment(end);
        } else if self.rest.starts_with("/*") {
            self.comment(block_comment_end(self.rest));
        } else if let (Some(end), false) = (raw_string_end(self.rest), after_word) {
            self.literal(end);
        } else if self.rest.starts_with('"') {
            self.literal(quoted_end(self.rest, '"'));
        } else if let Some(end) = character_end(self.rest) {
            self.literal(end);
        } else {
            self.take(1);
        }
    }

    /// Moves one character of code over.
    fn take(&mut self, count: usize) {
        for character in self.rest.chars().take(count) {
            self.code.push(character);
            self.comments.push(blank(character));
            self.rest = &self.rest[character.len_utf8()..];
        }
    }

    fn comment(&mut self, end: usize) {
        let (comment, rest) = self.rest.split_at(end);
        self.comments.push_str(comment);
        self.code.extend(comment.chars().map(blank));
        self.rest = rest;
    }

    /// Blanks a literal but keeps its first and last character as a place holder in the code.
    fn literal(&mut self, end: usize) {
        let (literal, rest) = self.rest.split_at(end);
        let last = literal.chars().count().saturating_sub(1);
        for (index, character) in literal.chars().enumerate() {
            let edge = index == 0 || index == last;
            self.code.push(if edge { character } else { blank(character) });
            self.comments.push(blank(character));
        }
        self.rest = rest;
    }
}

fn blank(character: char) -> char {
    if character == '\n' { '\n' } else { ' ' }
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn block_comment_end(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The end of a raw string (`r"…"`, `br#"…"#`, `cr"…"`) that starts at the start of `text`.
fn raw_string_end(text: &str) -> Option<usize> {
    let prefix = ["r", "br", "cr"].into_iter().find(|prefix| {
        text.strip_prefix(prefix).is_some_and(|after| after.trim_start_matches('#').starts_with('"'))
    })?;
    let hashes = text[prefix.len()..].chars().take_while(|&c| c == '#').count();
    let open = prefix.len() + hashes + 1;
    let close = format!("\"{}", "#".repeat(hashes));
    Some(text[open..].find(&close).map_or(text.len(), |at| open + at + close.len()))
}

fn quoted_end(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The end of a character literal at the start of `text`; a lifetime is none.
fn character_end(text: &str) -> Option<usize> {
    let inside = text.strip_prefix('\'')?;
    let mut characters = inside.chars();
    let first = characters.next()?;
    if first == '\\' {
        return Some(quoted_end(text, '\''));
    }
    (characters.next() == Some('\'')).then_some(1 + first.len_utf8() + 1)
}

/// The end of the item that follows an attribute at the start of `item`: its closing brace, or its
/// semicolon if it has no body.
fn item_end(item: &str) -> usize {
    let mut depth = 0_usize;
    for (at, character) in item.char_indices() {
        match character {
            '{' | '(' | '[' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' | ')' | ']' => depth = depth.saturating_sub(1),
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    item.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_code_are_separated_and_lines_stay() {
        let parts = split("let a = 1; // one\n/* two\n /* three */ */ let b;\n");

        assert_eq!(parts.code.trim(), "let a = 1;       \n      \n                let b;");
        assert!(parts.comments.contains("// one") && parts.comments.contains("three"));
        assert_eq!(parts.code.matches('\n').count(), 3);
        assert_eq!(parts.comments.matches('\n').count(), 3);
    }

    #[test]
    fn strings_hide_what_looks_like_code_or_comment() {
        let parts = split(r##"f("// no", r#"unsafe " "#, '"', '\'', "\"unsafe"); unsafe"##);

        assert_eq!(find_word(&parts.code, "unsafe").count(), 1);
        assert_eq!(parts.comments.trim(), "");
    }

    #[test]
    fn a_lifetime_does_not_open_a_literal() {
        let parts = split("fn f<'a>(x: &'a str) { unsafe {} } // 'b'");

        assert_eq!(find_word(&parts.code, "unsafe").count(), 1);
        assert!(parts.comments.contains("'b'"));
    }

    #[test]
    fn words_are_found_whole_only() {
        assert_eq!(find_word("unsafe_code unsafe xunsafe", "unsafe").collect::<Vec<_>>(), [12]);
    }

    #[test]
    fn items_under_cfg_test_are_left_out_with_their_braces() {
        let code = "fn a() {}\n#[cfg(test)]\nmod tests { fn b(x: [u8; 4]) { now() } }\nfn c() {}\n";
        let kept = without_tests(code);

        assert!(!kept.contains("now") && kept.contains("fn a") && kept.contains("fn c"));
        assert_eq!(kept.len(), code.len());
    }

    #[test]
    fn test_modules_in_their_own_file_are_named() {
        assert_eq!(test_modules("#[cfg(test)]\nmod tests;\nmod other;"), ["tests"]);
        assert_eq!(test_modules("#[cfg(test)]\nmod tests { }\nmod other;"), Vec::<String>::new());
    }
}
