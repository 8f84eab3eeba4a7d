//! What applications, and authors of transports, test with. Needs the feature `testing`.

pub mod conformance;
