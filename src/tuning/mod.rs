//! What the numbers of workers come from, and what would change them.

mod explain;

pub(crate) use explain::explain;
