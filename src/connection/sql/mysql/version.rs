//! A server's version, and what it supports.

/// A server's version, of MySQL or of MariaDB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    mariadb: bool,
    number: (u32, u32),
}

impl Version {
    /// Parses the result of `VERSION()`: `8.0.36`, `10.11.6-MariaDB-0+deb12u1`, `5.5.5-10.3.39-MariaDB`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mariadb = text.contains("MariaDB");
        // Old clients read version 10 as 1, so MariaDB adds this prefix for them.
        let text = if mariadb { text.trim_start_matches("5.5.5-") } else { text };
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some(Self { mariadb, number: (numbers.next()?.ok()?, numbers.next()?.ok()?) })
    }

    /// Whether the server is supported. The tables and statements need MySQL 5.6 or MariaDB 10.0.
    pub(super) fn is_recent_enough(self) -> bool {
        self.number >= if self.mariadb { (10, 0) } else { (5, 6) }
    }

    /// Whether it supports `SKIP LOCKED`.
    pub(super) fn has_skip_locked(self) -> bool {
        self.number >= if self.mariadb { (10, 6) } else { (8, 0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_supports_follows_from_its_version() {
        let can = |text: &str| {
            let version = Version::parse(text).unwrap();
            (version.is_recent_enough(), version.has_skip_locked())
        };
        for new in [
            "8.0.36-0ubuntu0.22.04.1",
            "8.4.0",
            "9.1.0",
            "10.6.0-MariaDB",
            "10.11.6-MariaDB-0+deb12u1",
            "11.4.2-MariaDB",
            "5.5.5-10.6.18-MariaDB",
        ] {
            assert_eq!(can(new), (true, true), "{new}");
        }
        for old in ["5.7.44-log", "5.6.51", "10.5.25-MariaDB", "5.5.5-10.3.39-MariaDB-1"] {
            assert_eq!(can(old), (true, false), "{old}");
        }
        for ancient in ["5.5.62", "5.1.73", "5.5.68-MariaDB"] {
            assert_eq!(can(ancient), (false, false), "{ancient}");
        }
        assert_eq!(Version::parse("unknown"), None);
    }
}
