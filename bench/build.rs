//! Builds the guest that answers over vsock (package `bench-guest`) as a bare program, for `guest::ANSWER` to embed.
//!
//! A cargo of its own, with a target directory of its own: there is no standard library under that program, and the
//! settings that keep it small are not for the rest of the workspace.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let var = |name: &str| PathBuf::from(env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}")));
    let here = var("CARGO_MANIFEST_DIR");
    let out = var("OUT_DIR");
    let workspace = here.parent().expect("the crate is in the workspace");
    for path in ["guest/src", "guest/Cargo.toml", "guest/build.rs", "guest/guest.ld", "../Cargo.toml"] {
        println!("cargo:rerun-if-changed={}", here.join(path).display());
    }
    let target = out.join("guest-target");
    let mut cargo = Command::new(var("CARGO"));
    cargo
        .args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "bench-guest",
            "--bin",
            "bench-guest",
            "--features",
            "bare",
        ])
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
    let status = cargo.status().unwrap_or_else(|e| panic!("cannot run cargo to build bench-guest: {e}"));
    assert!(status.success(), "building bench-guest failed ({status}); see above");
    let built = target.join("release/bench-guest");
    std::fs::copy(&built, out.join("guest"))
        .unwrap_or_else(|e| panic!("cannot copy {} to {}: {e}", built.display(), out.display()));
}
