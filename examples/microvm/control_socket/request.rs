//! What a client can ask for, a line of JSON each.

use std::path::PathBuf;
use std::time::Duration;

use iovirt::describe::{parse_size, parse_time};
use serde::{Deserialize, Deserializer};

/// The longest line in bytes, without its end.
pub(crate) const LONGEST_LINE: usize = 64 << 10;

/// How many characters of an error are told.
const TOLD: usize = 300;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Lists the devices and their stages.
    Devices {},
    /// What devices and stages counted so far.
    Stats {},
    /// Changes the size of a disk.
    Resize { device: usize, size: Size },
    /// Stops the vCPUs and drains the devices.
    Pause {
        #[serde(default)]
        deadline: Deadline,
    },
    /// The way back from a pause.
    Resume {},
    /// Writes the machine to a file.
    Save {
        path: PathBuf,
        #[serde(default)]
        then: Then,
        #[serde(default)]
        deadline: Deadline,
    },
    /// Puts another stack in the place of the one below a stage.
    Swap {
        device: usize,
        #[serde(default = "swappable")]
        stage: String,
        to: String,
        #[serde(default)]
        deadline: Deadline,
    },
    /// Changes the settings of a stage.
    Set { device: usize, to: String },
    /// Lets requests go on that a stage holds.
    Release { device: usize, stage: String },
    /// Puts a stack into a place that was made vacant.
    Add {
        device: usize,
        #[serde(default = "swappable")]
        stage: String,
        to: String,
        #[serde(default)]
        deadline: Deadline,
    },
    /// Takes the stack below a stage away.
    Remove {
        device: usize,
        #[serde(default = "swappable")]
        stage: String,
        #[serde(default)]
        deadline: Deadline,
    },
    /// Ends the machine.
    Quit {},
}

/// What becomes of a machine that was saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Then {
    /// It goes on.
    #[default]
    Resume,
    /// It ends.
    Quit,
}

/// A number of bytes: a number, or text such as `"128M"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

/// How long something may take, such as `"10s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline(pub(crate) Duration);

impl Deadline {
    /// The longest that a client may ask for.
    const LONGEST: Duration = Duration::from_secs(3600);
}

impl Default for Deadline {
    fn default() -> Self {
        Self(Duration::from_secs(10))
    }
}

fn swappable() -> String {
    "swappable".into()
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a size is a number of bytes or text such as \"128M\"")]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Some(bytes),
            Written::Text(text) => parse_size(&text),
        }
        .map(Self)
        .ok_or_else(|| serde::de::Error::custom("a size is a number of bytes or text such as \"128M\""))
    }
}

impl<'de> Deserialize<'de> for Deadline {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let limit = parse_time(&String::deserialize(deserializer)?).filter(|limit| *limit <= Self::LONGEST);
        let wrong = || serde::de::Error::custom("a deadline is a time up to an hour, such as \"10s\"");
        limit.map(Self).ok_or_else(wrong)
    }
}

impl Request {
    /// The request on a line.
    pub(crate) fn parse(line: &[u8]) -> Result<Self, String> {
        if line.len() > LONGEST_LINE {
            return Err(too_long());
        }
        serde_json::from_slice(line).map_err(|error| {
            // It may quote what the client sent.
            let told: String =
                error.to_string().chars().filter(|char| !char.is_control()).take(TOLD).collect();
            format!("this is no request: {told}")
        })
    }
}

/// What is said of a line that is too long.
pub(crate) fn too_long() -> String {
    format!("a request is one line of at most {LONGEST_LINE} bytes")
}

#[cfg(test)]
mod tests {
    use iovirt::core::test_utils::{Rng, rounds_or, seed_or};

    use super::*;

    const EXAMPLES: [&str; 12] = [
        r#"{"do":"save","path":"vm.saved","then":"quit"}"#,
        r#"{"do":"devices"}"#,
        r#"{"do":"stats"}"#,
        r#"{"do":"resize","device":0,"size":"128M"}"#,
        r#"{"do":"pause","deadline":"500ms"}"#,
        r#"{"do":"resume"}"#,
        r#"{"do":"swap","device":0,"stage":"swappable","to":"stats -> file,path=b.img"}"#,
        r#"{"do":"set","device":1,"to":"fault,fail=write,every=1"}"#,
        r#"{"do":"release","device":1,"stage":"fault"}"#,
        r#"{"do":"remove","device":0,"deadline":"1s"}"#,
        r#"{"do":"add","device":0,"stage":"swappable","to":"file,path=c.img"}"#,
        r#"{"do":"quit"}"#,
    ];

    #[test]
    fn requests_are_read() {
        for example in EXAMPLES {
            Request::parse(example.as_bytes()).unwrap_or_else(|error| panic!("{example}: {error}"));
        }
        let swap = Request::parse(br#"{"do":"swap","device":3,"to":"null"}"#).unwrap();
        let stage = "swappable".to_owned();
        assert_eq!(
            swap,
            Request::Swap { device: 3, stage, to: "null".into(), deadline: Deadline::default() }
        );
        let resize = Request::parse(br#"{"do":"resize","device":0,"size":4096}"#);
        assert_eq!(resize, Ok(Request::Resize { device: 0, size: Size(4096) }));
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        for wrong in [
            "",
            "{}",
            "[]",
            "null",
            r#"{"do":"grow"}"#,
            r#"{"do":"quit","now":true}"#,
            r#"{"do":"resize","device":-1,"size":1}"#,
            r#"{"do":"resize","device":0,"size":"big"}"#,
            r#"{"do":"pause","deadline":"2h"}"#,
            r#"{"do":"pause","deadline":"9999s"}"#,
            r#"{"do":"devices"} {"do":"quit"}"#,
        ] {
            let error = Request::parse(wrong.as_bytes()).expect_err(wrong);
            assert!(!error.contains('\n'), "{error:?}");
        }
        let deep = "[".repeat(LONGEST_LINE);
        assert!(Request::parse(deep.as_bytes()).is_err());
        assert_eq!(Request::parse(&vec![b' '; LONGEST_LINE + 1]), Err(too_long()));
    }

    /// Any bytes, and requests with bytes changed, cut out and put in, are read or refused.
    #[test]
    fn any_bytes_are_survived() {
        let mut rng = Rng::new(seed_or(0xc0de));
        let (mut read, mut refused) = (0, 0);
        for _ in 0..rounds_or(20_000) {
            let mut line = if rng.one_in(4) {
                (0..rng.below(64)).map(|_| rng.next_u64() as u8).collect()
            } else {
                EXAMPLES[rng.below(EXAMPLES.len() as u64) as usize].as_bytes().to_vec()
            };
            for _ in 0..rng.below(4) {
                let at = rng.below(line.len() as u64 + 1) as usize;
                let byte = if rng.one_in(2) {
                    b"{}[]\",:\\0e-"[rng.below(11) as usize]
                } else {
                    rng.next_u64() as u8
                };
                match rng.below(3) {
                    0 => line.insert(at, byte),
                    1 if at < line.len() => drop(line.remove(at)),
                    _ if at < line.len() => line[at] = byte,
                    _ => {}
                }
            }
            match Request::parse(&line) {
                Ok(_) => read += 1,
                Err(error) => {
                    assert!(!error.contains('\n'), "{error:?}");
                    refused += 1;
                }
            }
        }
        assert!(read > 0 && refused > 0, "{read} read, {refused} refused");
    }
}
