//! The program `minutely`.

use std::process::ExitCode;

fn main() -> ExitCode {
    minutely::cli::main(minutely::App::builder().program("minutely", env!("CARGO_PKG_VERSION")))
}
