//! What a client can ask for, a line of JSON each.

use std::path::PathBuf;

use serde::Deserialize;

use crate::common::control_socket::request::{Deadline, Size, swappable};

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

#[cfg(test)]
mod tests {
    use iovirt::core::test_utils::{Rng, rounds_or, seed_or};

    use super::*;
    use crate::common::control_socket::request::{LONGEST_LINE, parse, too_long};

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
            parse::<Request>(example.as_bytes()).unwrap_or_else(|error| panic!("{example}: {error}"));
        }
        let swap = parse::<Request>(br#"{"do":"swap","device":3,"to":"null"}"#).unwrap();
        let stage = "swappable".to_owned();
        assert_eq!(
            swap,
            Request::Swap { device: 3, stage, to: "null".into(), deadline: Deadline::default() }
        );
        let resize = parse::<Request>(br#"{"do":"resize","device":0,"size":4096}"#);
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
            let error = parse::<Request>(wrong.as_bytes()).expect_err(wrong);
            assert!(!error.contains('\n'), "{error:?}");
        }
        let deep = "[".repeat(LONGEST_LINE);
        assert!(parse::<Request>(deep.as_bytes()).is_err());
        assert_eq!(parse::<Request>(&vec![b' '; LONGEST_LINE + 1]), Err(too_long()));
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
            match parse::<Request>(&line) {
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
