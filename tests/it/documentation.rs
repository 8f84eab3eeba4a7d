//! What the pages show is what the examples do.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The lines of an excerpt or a file, without what indents them.
fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect()
}

/// Checks that each excerpt in a part of a page is in the example that the page names first. Returns how many there are.
fn excerpts_in(page: &str) -> usize {
    let Some((_, after)) = page.split_once("](../examples/") else { return 0 };
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(after.split_once(')').unwrap().0);
    let source = fs::read_to_string(&example).unwrap();
    let source = lines(&source);
    let mut excerpts = 0;
    for code in page.split("```rust\n").skip(1).map(|code| code.split_once("```").unwrap().0) {
        for part in code.split("// …\n") {
            let part = lines(part);
            let found = source.windows(part.len()).any(|window| window == part);
            assert!(found, "not in {}:\n{}", example.display(), part.join("\n"));
            excerpts += 1;
        }
    }
    excerpts
}

#[test]
fn every_excerpt_in_the_rust_guide_is_in_its_example() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let page = fs::read_to_string(docs.join("rust.md")).unwrap();
    let excerpts: usize = page.split("\n## ").skip(1).map(excerpts_in).sum();
    assert!(excerpts >= 9, "{excerpts}");
    let page = fs::read_to_string(docs.join("axum.md")).unwrap();
    assert!(excerpts_in(&page) >= 6);
}

/// The tests in the sources of a folder, by their modules and names. (Those that a macro makes are not found.)
fn tests_in(folder: &Path, module: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let module =
            if matches!(stem, "mod" | "lib" | "main") { module.to_owned() } else { format!("{module}{stem}::") };
        if path.is_dir() {
            tests_in(&path, &module, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            add_tests_of(&fs::read_to_string(&path).unwrap(), &module, found);
        }
    }
}

fn add_tests_of(source: &str, module: &str, found: &mut BTreeSet<String>) {
    let mut within: Vec<(usize, &str)> = Vec::new();
    let mut is_test = false;
    for line in source.lines() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if let Some(name) = text.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(" {")) {
            within.push((indent, name));
        } else if text == "}" && within.last().is_some_and(|(start, _)| *start == indent) {
            within.pop();
        } else if text.starts_with("#[test") || text.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some((_, rest)) = text.split_once("fn ").filter(|_| is_test) {
            let name = rest.split('(').next().unwrap();
            let inner: String = within.iter().map(|(_, name)| format!("{name}::")).collect();
            found.insert(format!("{module}{inner}{name}"));
            is_test = false;
        }
    }
}

/// All tests: of the library and the examples as they are written, and of this program as it lists them.
fn all_tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeSet::new();
    tests_in(&root.join("src"), "", &mut found);
    tests_in(&root.join("examples"), "", &mut found);
    let list = Command::new(std::env::current_exe().unwrap()).arg("--list").output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    found.extend(list.lines().filter_map(|line| Some(line.strip_suffix(": test")?.to_owned())));
    found
}

/// The table of Messenger's features says of each how it is done and which tests prove it, or why it is not here.
#[test]
fn every_feature_of_symfony_messenger_has_a_test_that_exists_or_a_reason() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/symfony.md")).unwrap();
    let (_, table) = page.split_once("\n## Every feature\n").unwrap();
    let tests = all_tests();
    let mut rows = 0;
    let mut mistakes = String::new();
    for line in table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [_, how, proof] = cells[..] else { panic!("not three cells: {line}") };
        if proof == "test" {
            continue;
        }
        rows += 1;
        if proof == "–" {
            if !(how.starts_with("PHP alone: ") || how.starts_with("not here")) {
                mistakes.push_str(&format!("no test and no reason: {line}\n"));
            }
            continue;
        }
        let names: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            mistakes.push_str(&format!("no test: {line}\n"));
        }
        for name in names.into_iter().filter(|name| !tests.contains(*name)) {
            mistakes.push_str(&format!("there is no test {name}\n"));
        }
    }
    assert!(mistakes.is_empty(), "{mistakes}");
    assert!(rows > 150, "{rows}");
}
