//! Which crate may import which, and other rules of the tree (docs/architecture.md, "The crates"). Reads manifests and
//! sources; runs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A crate, and what of ours it may import. An arrow that is not here is a design error.
const ARROWS: [(&str, &[&str]); 15] = [
    ("adversary", &["bare-programs", "ring3"]),
    ("bare-programs", &[]),
    ("bulkhead", &["bench", "vmm", "guest-images", "guest-protocol", "registry", "switch"]),
    ("bench", &["bare-programs", "bench-guest", "vmm"]),
    ("bench-guest", &["bare-programs", "ring3"]),
    ("vmm", &["devices", "boot"]),
    ("devices", &["switch"]),
    ("boot", &[]),
    ("guest-images", &["bare-programs", "guest-protocol"]),
    ("guest-init", &["guest-protocol"]),
    ("guest-protocol", &[]),
    ("registry", &["guest-images"]),
    ("ring3", &[]),
    ("switch", &[]),
    ("tests", &["bare-programs"]),
];

/// Crates that forbid `unsafe`, in every root.
const SAFE: [&str; 8] =
    ["bare-programs", "boot", "bulkhead", "bench", "guest-images", "guest-protocol", "registry", "switch"];

/// A file with more lines than this besides its tests wants to be two.
const LONG: usize = 440;

struct Package {
    dir: PathBuf,
    ours: BTreeSet<String>,
    all: BTreeSet<String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// The workspace's packages by name, with what they import (development dependencies apart: those ship nothing).
fn packages() -> BTreeMap<String, Package> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--format-version", "1", "--offline"]).current_dir(root());
    let output = cargo.output().expect("cargo metadata");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let list = metadata["packages"].as_array().expect("packages");
    let name = |value: &Value| value["name"].as_str().expect("a name").to_owned();
    let members: BTreeSet<String> = list.iter().map(name).collect();
    list.iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let all: BTreeSet<String> = dependencies.iter().filter(|d| d["kind"] != "dev").map(name).collect();
            let ours = all.intersection(&members).cloned().collect();
            let manifest = Path::new(package["manifest_path"].as_str().expect("a path"));
            (name(package), Package { dir: manifest.parent().expect("a directory").to_owned(), ours, all })
        })
        .collect()
}

/// Rust files below `dir`, build output left out.
fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn imports_point_one_way() {
    let packages = packages();
    let known: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        packages.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        known,
        "crates of the workspace and of this test"
    );
    for (name, allowed) in ARROWS {
        for import in &packages[name].ours {
            assert!(allowed.contains(&import.as_str()), "{name} must not import {import}");
        }
    }
}

#[test]
fn kvm_is_the_monitors_alone() {
    for (name, package) in packages() {
        for import in ["kvm-ioctls", "kvm-bindings"] {
            assert!(name == "vmm" || !package.all.contains(import), "{name} must not import {import}");
        }
        let mut files = Vec::new();
        sources(&package.dir.join("src"), &mut files);
        for file in files.iter().filter(|_| !["vmm", "tests"].contains(&name.as_str())) {
            let text = fs::read_to_string(file).expect("a source file");
            assert!(!text.contains("open(\"/dev/kvm\")"), "{} opens /dev/kvm", file.display());
        }
    }
}

#[test]
fn anyhow_is_the_binarys_alone() {
    for (name, package) in packages() {
        assert!(name == "bulkhead" || !package.all.contains("anyhow"), "{name} must not import anyhow");
    }
}

#[test]
fn unsafe_is_forbidden_where_nothing_needs_it() {
    let packages = packages();
    for name in SAFE {
        let src = packages[name].dir.join("src");
        let roots: Vec<_> =
            ["lib.rs", "main.rs"].map(|file| src.join(file)).into_iter().filter(|file| file.exists()).collect();
        assert!(!roots.is_empty(), "{name} has no root");
        for file in roots {
            let text = fs::read_to_string(&file).expect("a source file");
            assert!(text.contains("#![forbid(unsafe_code)]"), "{} does not forbid unsafe code", file.display());
        }
    }
}

#[test]
fn dependencies_come_from_the_one_table() {
    for (name, package) in packages() {
        let manifest = fs::read_to_string(package.dir.join("Cargo.toml")).expect("a manifest");
        let mut inside = false;
        for line in manifest.lines().map(str::trim) {
            if let Some(section) = line.strip_prefix('[') {
                inside = section.contains("dependencies]");
            } else if inside && line.contains('=') && !line.starts_with('#') && !line.starts_with('"') {
                assert!(line.contains("workspace = true"), "{name}: '{line}' is not from the workspace's table");
            }
        }
    }
}

#[test]
fn every_crate_takes_the_workspaces_lints() {
    for (name, package) in packages() {
        let manifest = fs::read_to_string(package.dir.join("Cargo.toml")).expect("a manifest");
        assert!(manifest.contains("[lints]\nworkspace = true"), "{name} does not take the workspace's lints");
    }
}

/// A crate that it does not name would be tested as it is shipped: without checks of overflow and of what is asserted in debug builds.
#[test]
fn every_crate_is_tested_with_the_tests_profile() {
    let profile = fs::read_to_string(root().join("tests/profile.toml")).expect("the profile of tests");
    for name in packages().keys() {
        let own = profile.lines().find(|line| line.starts_with(&format!("{name} = ")));
        let checks = own.is_some_and(|line| line.contains("debug-assertions = true, overflow-checks = true"));
        assert!(checks, "tests/profile.toml does not say how {name} is tested");
    }
}

#[test]
fn files_stay_short() {
    let mut long = Vec::new();
    for package in packages().values() {
        let mut files = Vec::new();
        sources(&package.dir.join("src"), &mut files);
        for file in files {
            let text = fs::read_to_string(&file).expect("a source file");
            let code = text.lines().take_while(|line| line.trim() != "#[cfg(test)]").count();
            if code > LONG && !file.components().any(|part| part.as_os_str() == "tests") && !file.ends_with("tests.rs")
            {
                long.push(format!("{} has {code} lines", file.display()));
            }
        }
    }
    assert_eq!(long, Vec::<String>::new());
}

#[test]
fn modules_say_what_they_are() {
    for package in packages().values() {
        let mut files = Vec::new();
        sources(&package.dir.join("src"), &mut files);
        for file in files {
            let text = fs::read_to_string(&file).expect("a source file");
            let tests = file.ends_with("tests.rs") || file.components().any(|part| part.as_os_str() == "tests");
            assert!(tests || text.starts_with("//!"), "{} has no header that says what it does", file.display());
        }
    }
}

/// The packages of a lock file that are in the tree, with the names of what each depends on.
fn locked(lock: &Path) -> BTreeMap<String, Vec<String>> {
    let text = fs::read_to_string(lock).expect("a lock file");
    let packages = text.split("[[package]]").filter(|package| !package.contains("\nsource = "));
    packages
        .filter_map(|package| {
            let name = package.lines().find_map(|line| line.strip_prefix("name = "))?;
            // Behind a name there is a version where there are two.
            let words = package.lines().filter_map(|line| line.strip_prefix(" \"")?.split([' ', '"']).next());
            Some((name.trim_matches('"').to_owned(), words.map(str::to_owned).collect()))
        })
        .collect()
}

#[test]
fn the_fuzz_targets_can_be_built_with_their_lock_file() {
    let (packages, fuzz) = (packages(), locked(&root().join("fuzz/Cargo.lock")));
    assert!(fuzz.contains_key("devices") && fuzz.contains_key("vmm"), "{:?}", fuzz.keys());
    for (name, package) in packages {
        // What only tests import is nothing to who imports the package.
        let Some(known) = fuzz.get(&name) else { continue };
        let missing: Vec<_> = package.all.iter().filter(|import| !known.contains(import)).collect();
        assert!(missing.is_empty(), "{name}: fuzz/Cargo.lock has no {missing:?}; `cargo metadata` in fuzz/ adds them");
    }
}
