//! What docs/threat-model.md says is tested, is: each test that it names is there, and each group of the checklist has some.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// Where tests are.
const SOURCES: [&str; 9] = ["bench", "boot", "cli", "devices", "guest-images", "registry", "switch", "tests", "vmm"];
/// Groups of the checklist.
const GROUPS: u32 = 13;

/// The names of functions that are tests: that come after `#[test]`, other attributes between them.
fn tests_of(source: &str, names: &mut HashSet<String>) {
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        if line == "#[test]" {
            is_test = true;
        } else if let Some(rest) = line.strip_prefix("fn ").filter(|_| is_test) {
            names.extend(rest.split('(').next().map(str::to_owned));
            is_test = false;
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            is_test = false;
        }
    }
}

fn collect(dir: &Path, names: &mut HashSet<String>) {
    for entry in fs::read_dir(dir).expect("a source directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            tests_of(&fs::read_to_string(&path).expect("a source file"), names);
        }
    }
}

/// The words in backquotes of a text that could be names of tests.
fn named(text: &str) -> Vec<&str> {
    let is_name = |word: &&str| {
        word.contains('_')
            && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    text.split('`').skip(1).step_by(2).filter(is_name).filter(|word| !word.ends_with('_')).collect()
}

#[test]
fn what_the_threat_model_says_is_tested_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut tests = HashSet::new();
    SOURCES.iter().for_each(|dir| collect(&root.join(dir), &mut tests));
    let text = fs::read_to_string(root.join("docs/threat-model.md")).expect("docs/threat-model.md");
    let checklist = text.split_once("### The adversarial checklist").expect("the checklist").1;
    let missing: Vec<_> = named(checklist).into_iter().filter(|name| !tests.contains(*name)).collect();
    assert!(missing.is_empty(), "docs/threat-model.md names tests that are not there: {missing:?}");
    let (groups, bugs) = checklist.split_once("### Bugs that others have had").expect("the bugs");
    for group in 1..=GROUPS {
        let prefix = format!("group_{group}_");
        assert!(tests.iter().any(|name| name.starts_with(&prefix)), "there is no test {prefix}...");
        let line = groups.lines().find(|line| line.starts_with(&format!("| {group} "))).expect("a line for each group");
        assert!(named(line).iter().any(|name| name.starts_with(&prefix)), "{line}");
    }
    for line in bugs.lines().filter(|line| line.starts_with("| ")).skip(1) {
        assert!(!named(line).is_empty(), "no test for: {line}");
    }
}

#[test]
fn names_of_tests_are_told_from_others() {
    let mut names = HashSet::new();
    tests_of(
        "#[test]\n#[ignore]\nfn a_b() {\nfn c_d() {\n#[test]\n/// x\nfn e_f(steps in x()) {\n#[test]\nlet x;\nfn g_h() {",
        &mut names,
    );
    let mut names: Vec<_> = names.into_iter().collect();
    names.sort_unstable();
    assert_eq!(names, ["a_b", "e_f"]);
    assert_eq!(named("`a_b` and `cargo test group_9_` `make` (`c_d`), `group_9_`"), ["a_b", "c_d"]);
}
