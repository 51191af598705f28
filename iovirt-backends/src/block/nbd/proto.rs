//! The bytes of the protocol: pure functions. Sections are those of `doc/proto.md` of the NBD project.
#![forbid(unsafe_code)]

use iovirt_core::request::block::BlockError;

/// "Newstyle negotiation": what a server says first, and what stands before each option.
pub(super) const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// "Fixed newstyle negotiation": what stands before each reply to an option.
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// "Request message" and "Simple reply message".
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// "Handshake flags" and "Client flags" share their bits.
pub(super) const FIXED_NEWSTYLE: u16 = 1 << 0;
pub(super) const NO_ZEROES: u16 = 1 << 1;

/// "Option types".
pub(super) const OPT_ABORT: u32 = 2;
pub(super) const OPT_GO: u32 = 7;

/// "Option reply types".
pub(super) const REP_ACK: u32 = 1;
pub(super) const REP_INFO: u32 = 3;
pub(super) const REP_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// "Maximum length" of a string in "Values".
pub(super) const MAX_STRING: usize = 4096;
/// Longest reply to an option that is read: more than any that is defined for what is asked.
pub(super) const MAX_OPTION_REPLY: usize = 64 << 10;

/// "Transmission flags".
pub(super) const FLAG_HAS_FLAGS: u16 = 1 << 0;
pub(super) const FLAG_READ_ONLY: u16 = 1 << 1;
pub(super) const FLAG_SEND_FLUSH: u16 = 1 << 2;
pub(super) const FLAG_SEND_FUA: u16 = 1 << 3;
pub(super) const FLAG_SEND_TRIM: u16 = 1 << 5;
pub(super) const FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
pub(super) const FLAG_CAN_MULTI_CONN: u16 = 1 << 8;

/// "Command flags".
pub(super) const CMD_FLAG_FUA: u16 = 1 << 0;
pub(super) const CMD_FLAG_NO_HOLE: u16 = 1 << 1;

/// "Request types".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    Trim = 4,
    WriteZeroes = 6,
}

/// Length of a request without its data.
pub(super) const REQUEST_LEN: usize = 28;
/// Length of a simple reply without its data.
pub(super) const REPLY_LEN: usize = 16;
/// Length of what stands before a reply to an option.
pub(super) const OPTION_REPLY_LEN: usize = 20;

/// A request message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    pub(super) command: Command,
    pub(super) flags: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) len: u32,
}

impl Message {
    pub(super) fn bytes(&self) -> [u8; REQUEST_LEN] {
        let mut bytes = [0; REQUEST_LEN];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&(self.command as u16).to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }
}

/// A simple reply without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) cookie: u64,
    pub(super) result: Result<(), BlockError>,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A simple reply; `None` where it is none.
pub(super) fn parse_reply(bytes: &[u8; REPLY_LEN]) -> Option<Reply> {
    if u32_at(bytes, 0)? != SIMPLE_REPLY_MAGIC {
        return None;
    }
    Some(Reply { cookie: u64_at(bytes, 8)?, result: meaning(u32_at(bytes, 4)?) })
}

/// "Error values".
fn meaning(error: u32) -> Result<(), BlockError> {
    Err(match error {
        0 => return Ok(()),
        1 => BlockError::ReadOnly,
        28 => BlockError::NoSpace,
        95 => BlockError::Unsupported,
        _ => BlockError::Io,
    })
}

/// What stands before a reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OptionReply {
    pub(super) option: u32,
    pub(super) kind: u32,
    pub(super) len: usize,
}

pub(super) fn parse_option_reply(bytes: &[u8; OPTION_REPLY_LEN]) -> Result<OptionReply, String> {
    let fields = || {
        let magic = u64_at(bytes, 0)?;
        Some((magic, u32_at(bytes, 8)?, u32_at(bytes, 12)?, u32_at(bytes, 16)? as usize))
    };
    match fields() {
        Some((OPTION_REPLY_MAGIC, option, kind, len)) if len <= MAX_OPTION_REPLY => {
            Ok(OptionReply { option, kind, len })
        }
        Some((OPTION_REPLY_MAGIC, _, _, len)) => {
            Err(format!("answers with {len} bytes, and {MAX_OPTION_REPLY} is the most that is read"))
        }
        _ => Err("does not answer as fixed newstyle servers do".into()),
    }
}

/// An option with its data.
pub(super) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + data.len());
    bytes.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// The data of `NBD_OPT_GO`: the export's name, and that block sizes are wanted. The name is no longer than [`MAX_STRING`].
pub(super) fn go(export: &str) -> Vec<u8> {
    let mut data = Vec::with_capacity(8 + export.len());
    data.extend_from_slice(&(export.len() as u32).to_be_bytes());
    data.extend_from_slice(export.as_bytes());
    data.extend_from_slice(&1u16.to_be_bytes());
    data.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
    data
}

/// What a server says of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Export {
    /// Size in bytes and transmission flags (`NBD_INFO_EXPORT`).
    pub(super) size_and_flags: Option<(u64, u16)>,
    /// Minimum block, preferred block and maximum payload in bytes (`NBD_INFO_BLOCK_SIZE`).
    pub(super) sizes: Option<(u32, u32, u32)>,
}

impl Export {
    /// Takes in one `NBD_REP_INFO`; kinds that were not asked for are passed over.
    pub(super) fn learn(&mut self, info: &[u8]) -> Result<(), String> {
        let learned = match u16_at(info, 0) {
            Some(INFO_EXPORT) => u64_at(info, 2).zip(u16_at(info, 10)).map(|facts| {
                self.size_and_flags = Some(facts);
                12
            }),
            Some(INFO_BLOCK_SIZE) => {
                let sizes = (u32_at(info, 2), u32_at(info, 6), u32_at(info, 10));
                let (Some(min), Some(preferred), Some(max)) = sizes else {
                    return Err("cuts its block sizes short".into());
                };
                self.sizes = Some((min, preferred, max));
                Some(14)
            }
            Some(_) => return Ok(()),
            None => None,
        };
        match learned {
            Some(len) if len == info.len() => Ok(()),
            _ => Err(format!(
                "sends {} bytes about the export, which is not what any information takes",
                info.len()
            )),
        }
    }
}

/// A refusal in words, with what the server adds, made fit for a line.
pub(super) fn refusal(kind: u32, export: &str, text: &[u8]) -> String {
    let mut words = match kind & !REP_ERROR {
        1 => "does not know NBD_OPT_GO, which this client needs".to_owned(),
        2 => "does not permit it".to_owned(),
        3 => "finds the request invalid".to_owned(),
        4 => "cannot do it on its platform".to_owned(),
        5 => "demands TLS, which this client does not speak".to_owned(),
        6 => format!("has no export named {export:?}"),
        7 => "is shutting down".to_owned(),
        8 => "demands that block sizes are asked for".to_owned(),
        9 => "finds the request too large".to_owned(),
        other => format!("refuses with error {other}"),
    };
    let text: String = String::from_utf8_lossy(&text[..text.len().min(256)])
        .chars()
        .map(|character| if character.is_control() { ' ' } else { character })
        .collect();
    if !text.trim().is_empty() {
        words = format!("{words} ({})", text.trim());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_is_laid_out_as_specified() {
        let message =
            Message { command: Command::WriteZeroes, flags: 3, cookie: 0x0102, offset: 0x0304, len: 0x0506 };
        assert_eq!(
            message.bytes(),
            [0x25, 0x60, 0x95, 0x13, 0, 3, 0, 6, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 3, 4, 0, 0, 5, 6]
        );
    }

    proptest! {
        #[test]
        fn nothing_that_a_server_says_panics(bytes in prop::collection::vec(any::<u8>(), 0..64), kind: u32) {
            let _ = Export::default().learn(&bytes);
            let line = refusal(kind, "disk", &bytes);
            prop_assert!(!line.contains('\n'));
            if let Some(head) = bytes.first_chunk() {
                let _ = parse_reply(head);
            }
            if let Some(head) = bytes.first_chunk()
                && let Ok(reply) = parse_option_reply(head)
            {
                prop_assert!(reply.len <= MAX_OPTION_REPLY);
            }
        }

        #[test]
        fn a_reply_is_read_as_it_was_written(cookie: u64, error: u32, magic in prop_oneof![Just(SIMPLE_REPLY_MAGIC), any::<u32>()]) {
            let mut bytes = [0; REPLY_LEN];
            bytes[..4].copy_from_slice(&magic.to_be_bytes());
            bytes[4..8].copy_from_slice(&error.to_be_bytes());
            bytes[8..].copy_from_slice(&cookie.to_be_bytes());
            let reply = parse_reply(&bytes);
            prop_assert_eq!(reply.is_some(), magic == SIMPLE_REPLY_MAGIC);
            if let Some(reply) = reply {
                prop_assert_eq!(reply.cookie, cookie);
                prop_assert_eq!(reply.result.is_ok(), error == 0);
            }
        }
    }
}
