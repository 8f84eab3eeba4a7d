//! `minutely key`: a new key at random, for `serializer: {encrypt: {keys: …}}`.

use std::io::{self, Write};

use super::{End, Failure, Result};
use crate::serializer::new_key;

/// What it is called on the command line.
pub(super) const NAMES: &[&str] = &["key"];

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Keep it where only the program and its operators can read it, in .env.local for example:
  echo \"QUEUE_KEY=$(minutely key)\" >> .env.local
and name it in the configuration: serializer: {encrypt: {keys: ['%env(QUEUE_KEY)%']}}")]
pub(super) struct Args {}

pub(super) fn run(_: &Args) -> Result<End> {
    // Its output is all that it is for.
    writeln!(io::stdout(), "{}", new_key().map_err(Failure::Failed)?)?;
    Ok(End::Well)
}
