//! Development commands of iovirt: `cargo xtask test` checks everything, `cargo xtask lab` runs our devices under a real
//! KVM against the drivers of a stock Linux kernel, `cargo xtask blocks` writes the table of proofs, `cargo xtask bench-peers`
//! measures our vhost-user daemon beside QEMU's. Each says more with `--help`.

mod bench_peers;
mod blocks;
mod cmd;
mod error;
mod fuzz;
mod instructions;
mod lab;
mod setup;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Development commands of iovirt.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set up what is needed and run every check of the project.
    Test(test::Options),
    /// Write docs/blocks.md: what proves each block.
    Blocks(blocks::Options),
    /// Run our VMM under a real KVM with a stock Linux kernel as its guest.
    Lab(lab::Options),
    /// Measure our vhost-user daemon beside QEMU's, and write the table in docs/performance.md.
    BenchPeers(bench_peers::Options),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Test(options) => test::run(&options),
        Command::Blocks(options) => blocks::run(&options),
        Command::Lab(options) => lab::run(&options),
        Command::BenchPeers(options) => bench_peers::run(&options),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
