//! The characters of a description: what is left of it, and at which column that begins.

use super::error::{DescribeError, DescribeErrorKind, shown};
use super::model::Place;

/// What is left of a text.
#[derive(Debug)]
pub(super) struct Scanner<'a> {
    rest: &'a str,
    column: u32,
}

/// Whether a word needs no quotes as a value.
pub(super) fn is_plain(text: &str) -> bool {
    !text.is_empty() && plain_len(text, false) == text.len()
}

/// How many bytes at the start of a text are plain characters.
fn plain_len(text: &str, is_name: bool) -> usize {
    let ends = |(at, char): (usize, char)| match char {
        ',' | '[' | ']' | '|' | '"' => true,
        '=' => is_name,
        '-' => text[at..].starts_with("->"),
        char => char.is_whitespace() || char.is_control(),
    };
    text.char_indices().find(|&at| ends(at)).map_or(text.len(), |(at, _)| at)
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text, column: 1 }
    }

    pub(super) fn place(&self) -> Place {
        Place(Some(self.column))
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn skip_space(&mut self) {
        let space = self.rest.len() - self.rest.trim_start().len();
        self.skip(space);
    }

    /// Takes that token, if it comes next.
    pub(super) fn eat(&mut self, token: &str) -> bool {
        let eaten = self.rest.starts_with(token);
        if eaten {
            self.skip(token.len());
        }
        eaten
    }

    /// The next word: the name of a stage or a key, which has no `=`.
    pub(super) fn name(&mut self, expected: &'static str) -> Result<String, DescribeError> {
        self.word(true, expected)
    }

    /// The next word: a value.
    pub(super) fn value(&mut self, expected: &'static str) -> Result<String, DescribeError> {
        self.word(false, expected)
    }

    /// An error about what comes next.
    pub(super) fn expected(&self, expected: &'static str) -> DescribeError {
        let len = match plain_len(self.rest, true) {
            0 if self.rest.starts_with("->") => 2,
            0 => self.rest.chars().next().map_or(0, char::len_utf8),
            len => len,
        };
        let found = if len == 0 { "the end".into() } else { shown(&self.rest[..len]) };
        DescribeError::new(self.place(), DescribeErrorKind::Syntax { found, expected })
    }

    fn word(&mut self, is_name: bool, expected: &'static str) -> Result<String, DescribeError> {
        if self.rest.starts_with('"') {
            return self.quoted();
        }
        let (word, _) = self.rest.split_at(plain_len(self.rest, is_name));
        if word.is_empty() {
            return Err(self.expected(expected));
        }
        self.skip(word.len());
        Ok(word.into())
    }

    fn quoted(&mut self) -> Result<String, DescribeError> {
        let opening = self.place();
        self.skip(1);
        let mut word = String::new();
        loop {
            match self.next() {
                Some('"') => return Ok(word),
                Some('\\') => word.push(self.escape()?),
                Some(char) => word.push(char),
                None => return Err(DescribeError::new(opening, DescribeErrorKind::Unclosed)),
            }
        }
    }

    fn escape(&mut self) -> Result<char, DescribeError> {
        const ALLOWED: &str = r#"one of \" \\ \n \r \t \u{…}"#;
        let place = self.place();
        let escaped = match self.next() {
            Some(char @ ('"' | '\\')) => Some(char),
            Some('n') => Some('\n'),
            Some('r') => Some('\r'),
            Some('t') => Some('\t'),
            Some('u') => self.code_point(),
            _ => None,
        };
        escaped.ok_or_else(|| {
            let found = "an unknown escape".into();
            DescribeError::new(place, DescribeErrorKind::Syntax { found, expected: ALLOWED })
        })
    }

    /// `{…}` with one to six hexadecimal digits.
    fn code_point(&mut self) -> Option<char> {
        let (digits, _) = self.rest.strip_prefix('{')?.split_once('}')?;
        if !(1..=6).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        self.skip(digits.len() + 2);
        char::from_u32(u32::from_str_radix(digits, 16).ok()?)
    }

    fn next(&mut self) -> Option<char> {
        let char = self.rest.chars().next()?;
        self.skip(char.len_utf8());
        Some(char)
    }

    /// Goes on by so many bytes, which end where a character does.
    fn skip(&mut self, bytes: usize) {
        let (skipped, rest) = self.rest.split_at(bytes);
        self.column += skipped.chars().count() as u32;
        self.rest = rest;
    }
}
