//! The table as text: what `--list-stages` prints, and what the documentation has.

use super::{KeyInfo, Need, Registry, StageKind, StageRow};
use crate::describe::Count;
use std::fmt::{self, Display, Formatter, Write};

const KINDS: [(StageKind, &str); 4] = [
    (StageKind::FrontEnd, "Front-ends"),
    (StageKind::Interposer, "Interposers"),
    (StageKind::FanOut, "Fan-outs"),
    (StageKind::BackEnd, "Back-ends"),
];

impl Registry {
    /// All stages with their keys, defaults, one line of help and their maturity, for a terminal.
    pub fn list_stages(&self) -> String {
        self.list(|out, row| {
            writeln!(out, "\n  {}  ({})\n      {}", row.info().name, Facts(row), row.info().help)?;
            for key in row.info().keys {
                writeln!(out, "      {}{}: {} ({})", key.name, Default(key), key.help, key.value)?;
            }
            Ok(())
        })
    }

    /// The same as Markdown.
    pub fn list_stages_markdown(&self) -> String {
        self.list(|out, row| {
            writeln!(out, "\n### `{}`\n\n{} ({}).", row.info().name, row.info().help, Facts(row))?;
            if !row.info().keys.is_empty() {
                writeln!(out, "\n| key | default | value | meaning |\n|---|---|---|---|")?;
            }
            for key in row.info().keys {
                let default = match key.need {
                    Need::Required => "required".into(),
                    Need::Default(value) => format!("`{value}`"),
                    Need::Optional => String::new(),
                };
                writeln!(out, "| `{}` | {default} | {} | {} |", key.name, key.value, key.help)?;
            }
            Ok(())
        })
    }

    fn list(&self, mut each: impl FnMut(&mut String, &StageRow) -> fmt::Result) -> String {
        let mut out = String::new();
        for (kind, title) in KINDS {
            let mut rows = self.rows().filter(|row| row.kind() == kind).peekable();
            if rows.peek().is_none() {
                continue;
            }
            let gap = if out.is_empty() { "" } else { "\n" };
            // Writing to a string does not fail.
            let _ =
                writeln!(out, "{gap}## {title}").and_then(|()| rows.try_for_each(|row| each(&mut out, row)));
        }
        out
    }
}

/// Family, maturity and whether the build has it.
struct Facts<'a>(&'a StageRow);

impl Display for Facts<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let info = self.0.info();
        write!(f, "{}, {}", info.family.name(), info.maturity)?;
        if let Some(branches) = self.0.branches() {
            write!(f, ", [{}]", Count(branches))?;
        }
        if self.0.is_available() { Ok(()) } else { f.write_str(", not in this build") }
    }
}

/// What stands behind a key in a description.
struct Default<'a>(&'a KeyInfo);

impl Display for Default<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0.need {
            Need::Required => f.write_str("=… (required)"),
            Need::Default(value) => write!(f, "={value}"),
            Need::Optional => f.write_str("=…"),
        }
    }
}
