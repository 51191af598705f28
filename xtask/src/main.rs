//! Development commands of iovirt: `cargo xtask <command>`.

fn main() {}
