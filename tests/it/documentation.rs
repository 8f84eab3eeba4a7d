//! What the pages show is what the examples do.

use std::fs;
use std::path::Path;

/// The lines of an excerpt or a file, without what indents them.
fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect()
}

#[test]
fn every_excerpt_in_the_rust_guide_is_in_its_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/rust.md")).unwrap();
    let mut excerpts = 0;
    for section in page.split("\n## ").skip(1) {
        let Some((_, after)) = section.split_once("](../examples/") else { continue };
        let example = root.join("examples").join(after.split_once(')').unwrap().0);
        let source = fs::read_to_string(&example).unwrap();
        let source = lines(&source);
        for code in section.split("```rust\n").skip(1).map(|code| code.split_once("```").unwrap().0) {
            for part in code.split("// …\n") {
                let part = lines(part);
                let found = source.windows(part.len()).any(|window| window == part);
                assert!(found, "not in {}:\n{}", example.display(), part.join("\n"));
                excerpts += 1;
            }
        }
    }
    assert!(excerpts >= 9, "{excerpts}");
}
