//! The program `minutely`.

fn main() {}
