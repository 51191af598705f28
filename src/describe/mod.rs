//! Pipelines as text: one line per device, from the guest to the hardware.
//!
//! ```text
//! virtio-blk,queues=2 -> stats -> memory,size=1G
//! virtio-blk -> mirror,write-quorum=2 [file,path=a.img | stats -> file,path=b.img]
//! ```
//!
//! # Grammar
//!
//! ```text
//! description = stage "->" chain
//! chain       = stage { "->" stage } [ "[" chain { "|" chain } "]" ]
//! stage       = word { "," word "=" word }
//! word        = plain characters, or a string in double quotes
//! ```
//!
//! The first stage of a description is the front-end, the last one of a chain its back-end, those between are interposers.
//! Space is allowed around `->`, `,`, `[`, `|` and `]`, not around `=`.
//!
//! A plain word has none of `, [ ] | "`, no space, no control character and no `->`; the name of a stage or a key has no
//! `=` either. Everything else goes in double quotes, with the escapes `\"`, `\\`, `\n`, `\r`, `\t` and `\u{…}` (up to six
//! hexadecimal digits).
//!
//! # Values
//!
//! | kind | written | is |
//! |---|---|---|
//! | size | `512`, `64K`, `10M`, `1G`, `2T` | bytes; the units are binary |
//! | time | `500ns`, `20us`, `5ms`, `1s` | a duration; the unit is required |
//! | switch | `on`, `off` | a boolean |
//! | number | `4` | a whole number, decimal |
//! | choice | `write-back` | one of a list of words |
//! | text, path | `disk.img`, `"my disk.img"` | anything |
//!
//! # What is checked where
//!
//! This module knows the grammar only: [`Description`] and [`Chain`] are parsed without knowing which stages exist. The
//! [`Registry`](crate::registry::Registry) knows the stages, checks names, keys and values, and builds. Either answers with a
//! [`DescribeError`] that says where and what.
//!
//! Input is bounded ([`MAX_LEN`], [`MAX_DEPTH`], [`MAX_STAGES`], [`MAX_OPTIONS`]), so it may come from anyone.

mod error;
mod model;
mod parse;
mod print;
mod scan;
#[cfg(test)]
mod tests;
mod value;

pub use error::{DescribeError, DescribeErrorKind};
pub use model::{Chain, Description, Node, StageSpec};
pub use parse::{MAX_DEPTH, MAX_LEN, MAX_OPTIONS, MAX_STAGES};
pub use value::{format_size, format_switch, format_time, parse_size, parse_switch, parse_time};

pub(crate) use error::Count;
pub(crate) use model::Place;
pub(crate) use value::parse_number;
