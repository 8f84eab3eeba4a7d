//! Files for TLS, in PEM format: whom to trust, and who this side is.

use std::ffi::OsStr;
use std::path::Path;
use std::{fs, io};

/// What a connection trusts and shows. Connections that differ in it are not shared.
///
/// It has no `Debug`, as it holds a private key.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Tls {
    /// The certificates of authorities to trust.
    pub(super) authorities: Option<String>,
    /// This side's certificate and its key.
    pub(super) identity: Option<(String, String)>,
}

/// The certificates in a file, or in the files of a folder, which PHP calls `capath`.
///
/// In a folder where certificates have the names that OpenSSL looks them up by (`5ed36f99.0`, made by `openssl rehash`) they
/// alone are read, as the same ones are likely to be there under other names too.
pub(super) fn certificates(path: &Path) -> io::Result<String> {
    if !path.is_dir() {
        return fs::read_to_string(path);
    }
    let files: Vec<_> = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    let has_name = |fits: fn(&Path) -> bool| {
        let mut fitting: Vec<_> = files.iter().filter(|file| fits(file) && file.is_file()).collect();
        fitting.sort();
        fitting
    };
    let mut chosen = has_name(is_hash);
    if chosen.is_empty() {
        chosen =
            has_name(|file| file.extension().is_some_and(|end| ["pem", "crt", "cer"].map(OsStr::new).contains(&end)));
    }
    if chosen.is_empty() {
        return Err(io::Error::other("the folder has no certificates: no *.pem, *.crt or *.cer"));
    }
    let mut all = String::new();
    for file in chosen {
        all.push_str(&fs::read_to_string(file)?);
        all.push('\n');
    }
    Ok(all)
}

/// Is it a name that OpenSSL looks for: eight hexadecimal digits, a dot, and a number?
fn is_hash(file: &Path) -> bool {
    let Some((hash, number)) = file.file_name().and_then(OsStr::to_str).and_then(|name| name.split_once('.')) else {
        return false;
    };
    hash.len() == 8
        && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
        && !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_read_from_a_file_and_from_a_folder_once() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| fs::write(dir.path().join(name), content).unwrap();
        assert!(certificates(dir.path()).unwrap_err().to_string().contains("no certificates"));
        write("readme.txt", "hello");
        write("b.pem", "B");
        write("a.crt", "A");
        assert_eq!(certificates(dir.path()).unwrap(), "A\nB\n");
        assert_eq!(certificates(&dir.path().join("b.pem")).unwrap(), "B");
        std::os::unix::fs::symlink("b.pem", dir.path().join("0123abcd.0")).unwrap();
        assert_eq!(certificates(dir.path()).unwrap(), "B\n");
        assert!(certificates(&dir.path().join("missing")).is_err());
    }
}
