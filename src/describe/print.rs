//! Descriptions as text.

use super::scan::is_plain;
use super::{Chain, Description, Node, StageSpec};
use std::fmt::{self, Display, Formatter, Write};

impl Display for Description {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.frontend, self.below)
    }
}

impl Display for Chain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for stage in &self.stages {
            write!(f, "{stage} -> ")?;
        }
        self.backend.fmt(f)
    }
}

impl Display for Node {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.stage.fmt(f)?;
        if self.branches.is_empty() {
            return Ok(());
        }
        for (index, branch) in self.branches.iter().enumerate() {
            write!(f, "{}{branch}", if index == 0 { " [" } else { " | " })?;
        }
        f.write_char(']')
    }
}

impl Display for StageSpec {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        name(self.name(), f)?;
        for (key, value) in self.options() {
            f.write_char(',')?;
            name(key, f)?;
            f.write_char('=')?;
            word(value, is_plain(value), f)?;
        }
        Ok(())
    }
}

/// The name of a stage or a key.
fn name(text: &str, f: &mut Formatter<'_>) -> fmt::Result {
    word(text, is_plain(text) && !text.contains('='), f)
}

fn word(text: &str, plain: bool, f: &mut Formatter<'_>) -> fmt::Result {
    if plain {
        return f.write_str(text);
    }
    f.write_char('"')?;
    for char in text.chars() {
        match char {
            '"' | '\\' => write!(f, "\\{char}")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            char if char.is_control() => write!(f, "\\u{{{:x}}}", u32::from(char))?,
            char => f.write_char(char)?,
        }
    }
    f.write_char('"')
}
