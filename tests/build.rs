//! Builds the adversarial guest, for `e2e/adversary.rs` to embed.

fn main() {
    let sources = &["adversary/src", "adversary/Cargo.toml", "adversary/build.rs", "../guest-images/ring3"];
    bare_programs::Program { package: "adversary", feature: "bare", sources }.build("adversary");
}
