//! Builds the guest's init as a static executable, for `INIT` to embed.

fn main() {
    let sources = &["init/src", "init/Cargo.toml", "init/build.rs", "protocol/src", "protocol/Cargo.toml"];
    bare_programs::Program { package: "guest-init", feature: "pid1", sources }.build("init");
}
