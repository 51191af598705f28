//! Text as descriptions.

use super::error::{DescribeError, DescribeErrorKind};
use super::model::StageOption;
use super::scan::Scanner;
use super::{Chain, Description, Node, StageSpec};
use std::str::FromStr;

/// The longest description in bytes.
pub const MAX_LEN: usize = 64 << 10;
/// How deep brackets may be nested.
pub const MAX_DEPTH: usize = 8;
/// The most stages of one description, in all its branches.
pub const MAX_STAGES: usize = 256;
/// The most options of one stage.
pub const MAX_OPTIONS: usize = 64;

impl FromStr for Description {
    type Err = DescribeError;

    fn from_str(text: &str) -> Result<Self, DescribeError> {
        Parser::whole(text, |parser| {
            let frontend = parser.stage()?;
            if !parser.eat("->") {
                return Err(parser
                    .scanner
                    .expected("`,` and an option, or `->` and what is below the device"));
            }
            Ok(Self { frontend, below: parser.chain(0)? })
        })
    }
}

impl FromStr for Chain {
    type Err = DescribeError;

    fn from_str(text: &str) -> Result<Self, DescribeError> {
        Parser::whole(text, |parser| parser.chain(0))
    }
}

struct Parser<'a> {
    scanner: Scanner<'a>,
    stages: usize,
}

impl<'a> Parser<'a> {
    fn whole<T>(
        text: &'a str,
        parse: impl FnOnce(&mut Self) -> Result<T, DescribeError>,
    ) -> Result<T, DescribeError> {
        let mut parser = Self { scanner: Scanner::new(text), stages: 0 };
        parser.limit(text.len(), MAX_LEN, "bytes in a description")?;
        let whole = parse(&mut parser)?;
        parser.scanner.skip_space();
        if !parser.scanner.is_at_end() {
            return Err(parser.scanner.expected("`->`, or `,` and an option, or the end"));
        }
        Ok(whole)
    }

    fn chain(&mut self, depth: usize) -> Result<Chain, DescribeError> {
        let mut stages = Vec::new();
        loop {
            let stage = self.stage()?;
            if self.eat("[") {
                let branches = self.branches(depth + 1)?;
                return Ok(Chain { stages, backend: Node { stage, branches } });
            }
            if !self.eat("->") {
                return Ok(Chain::new(stages, stage));
            }
            stages.push(stage);
        }
    }

    fn branches(&mut self, depth: usize) -> Result<Vec<Chain>, DescribeError> {
        self.limit(depth, MAX_DEPTH, "levels of brackets")?;
        let mut branches = Vec::new();
        loop {
            branches.push(self.chain(depth)?);
            if self.eat("]") {
                return Ok(branches);
            }
            if !self.eat("|") {
                return Err(self.scanner.expected("`->`, `,` and an option, `|` or `]`"));
            }
        }
    }

    fn stage(&mut self) -> Result<StageSpec, DescribeError> {
        self.stages += 1;
        self.limit(self.stages, MAX_STAGES, "stages in a description")?;
        self.scanner.skip_space();
        let place = self.scanner.place();
        let mut stage = StageSpec::at(self.scanner.name("the name of a stage")?, place);
        while self.eat(",") {
            self.limit(stage.options().len() + 1, MAX_OPTIONS, "options of a stage")?;
            let option = self.option()?;
            if stage.get(&option.key).is_some() {
                let (stage, key) = (stage.name().into(), option.key);
                return Err(DescribeError::new(
                    option.key_place,
                    DescribeErrorKind::RepeatedKey { stage, key },
                ));
            }
            stage.push(option);
        }
        Ok(stage)
    }

    fn option(&mut self) -> Result<StageOption, DescribeError> {
        self.scanner.skip_space();
        let key_place = self.scanner.place();
        let key = self.scanner.name("an option: a key, `=` and a value")?;
        if !self.scanner.eat("=") {
            return Err(self.scanner.expected("`=` and the option's value"));
        }
        let value_place = self.scanner.place();
        let value = self.scanner.value("the option's value (`\"\"` for an empty one)")?;
        Ok(StageOption { key, value, key_place, value_place })
    }

    fn eat(&mut self, token: &str) -> bool {
        self.scanner.skip_space();
        self.scanner.eat(token)
    }

    fn limit(&self, count: usize, limit: usize, what: &'static str) -> Result<(), DescribeError> {
        if count <= limit {
            return Ok(());
        }
        Err(DescribeError::new(self.scanner.place(), DescribeErrorKind::TooMuch { what, limit }))
    }
}
