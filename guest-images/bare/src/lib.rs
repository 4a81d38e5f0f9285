//! Builds programs that run in guests, which have no standard library: for build scripts, whose crates embed them.
//!
//! A cargo of its own: such a program is built for size, with settings that the rest of the workspace does not want. Its
//! target directory, `bare` in the outer one, is one for all such programs and all profiles, so that each is built once.
#![forbid(unsafe_code)]

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the outer cargo was told about its own build (coverage, sanitizers, clippy), which is not for such a program.
const NOT_FOR_GUESTS: [&str; 5] =
    ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET"];

/// A program to build: the one binary of a package of the workspace, named like it.
pub struct Program<'a> {
    /// The package.
    pub package: &'a str,
    /// The feature that makes it the program itself.
    pub feature: &'a str,
    /// What it is made of, beside the workspace's manifest: relative to the crate that asks.
    pub sources: &'a [&'a str],
}

impl Program<'_> {
    /// Builds it, and puts it at `name` in the build script's `OUT_DIR`.
    ///
    /// # Panics
    ///
    /// As build scripts do, when it cannot be built; cargo has said why.
    pub fn build(&self, name: &str) {
        let here = variable("CARGO_MANIFEST_DIR");
        for path in self.sources.iter().chain(&["../Cargo.toml"]) {
            println!("cargo:rerun-if-changed={}", here.join(path).display());
        }
        let out = variable("OUT_DIR");
        let target = target_directory(&out).join("bare");
        let mut cargo = Command::new(variable("CARGO"));
        cargo.args(["build", "--quiet", "--release", "--package", self.package, "--bin", self.package]);
        cargo.args(["--features", self.feature]);
        cargo
            .current_dir(here.parent().expect("the crate is in the workspace"))
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
            .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
            .env("CARGO_PROFILE_RELEASE_LTO", "fat")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
        for name in NOT_FOR_GUESTS {
            cargo.env_remove(name);
        }
        let status = cargo.status().unwrap_or_else(|e| panic!("cannot run cargo to build {}: {e}", self.package));
        assert!(status.success(), "building {} failed ({status}); see above", self.package);
        let built = target.join("release").join(self.package);
        std::fs::copy(&built, out.join(name))
            .unwrap_or_else(|e| panic!("cannot copy {} to {}: {e}", built.display(), out.display()));
    }
}

/// For the build script of a program that runs in ring 3 of a bare machine (crate `ring3`): links it as one segment at a fixed address, with nothing
/// of libc and no start files.
///
/// # Panics
///
/// As build scripts do, outside a crate of the workspace.
pub fn link_for_ring3(from_crate_to_workspace: &str) {
    let script = variable("CARGO_MANIFEST_DIR").join(from_crate_to_workspace).join("guest-images/ring3/program.ld");
    println!("cargo:rerun-if-changed={}", script.display());
    println!("cargo:rustc-link-arg-bins=-Wl,-T,{}", script.display());
    for argument in ["-static", "-no-pie", "-nostartfiles", "-nostdlib", "-Wl,--gc-sections", "-Wl,--build-id=none"] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}

fn variable(name: &str) -> PathBuf {
    PathBuf::from(env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}")))
}

/// The outer cargo's target directory, which it does not tell: `OUT_DIR` is `[TRIPLE/]PROFILE/build/CRATE-HASH/out` in it.
/// Where that is otherwise, a directory for this crate alone does.
fn target_directory(out: &Path) -> &Path {
    let profile = out.ancestors().nth(3).filter(|_| out.ancestors().nth(2).is_some_and(|dir| dir.ends_with("build")));
    profile.and_then(Path::parent).unwrap_or(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_directory_is_the_profiles_parent() {
        assert_eq!(target_directory(Path::new("/w/target/debug/build/bench-1/out")), Path::new("/w/target"));
        assert_eq!(target_directory(Path::new("/w/target/x86/debug/build/bench-1/out")), Path::new("/w/target/x86"));
        assert_eq!(target_directory(Path::new("/elsewhere/out")), Path::new("/elsewhere/out"));
    }
}
