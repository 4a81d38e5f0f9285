//! Builds the guest's init (package `guest-init`) as a static executable, for `INIT` to embed.
//!
//! A cargo of its own, with a target directory of its own: init is built without the standard library, for size, with
//! settings that the rest of the workspace does not want.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let var = |name: &str| PathBuf::from(env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}")));
    let here = var("CARGO_MANIFEST_DIR");
    let out = var("OUT_DIR");
    let workspace = here.parent().expect("the crate is in the workspace");
    for path in ["init/src", "init/Cargo.toml", "init/build.rs", "protocol/src", "protocol/Cargo.toml", "../Cargo.toml"]
    {
        println!("cargo:rerun-if-changed={}", here.join(path).display());
    }
    let target = out.join("init-target");
    let mut cargo = Command::new(var("CARGO"));
    cargo
        .args(["build", "--quiet", "--release", "--package", "guest-init", "--bin", "guest-init", "--features", "pid1"])
        .current_dir(workspace)
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    // What the outer cargo was told about its own build (coverage, sanitizers, clippy) is not for a program without libc.
    for name in
        ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET"]
    {
        cargo.env_remove(name);
    }
    let status = cargo.status().unwrap_or_else(|e| panic!("cannot run cargo to build guest-init: {e}"));
    assert!(status.success(), "building guest-init failed ({status}); see above");
    let built = target.join("release/guest-init");
    std::fs::copy(&built, out.join("init"))
        .unwrap_or_else(|e| panic!("cannot copy {} to {}: {e}", built.display(), out.display()));
}
