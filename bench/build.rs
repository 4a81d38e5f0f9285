//! Builds the benchmark's guest as a bare program, for `guest::ANSWER` to embed.

fn main() {
    let sources = &["guest/src", "guest/Cargo.toml", "guest/build.rs", "../guest-images/ring3"];
    bare_programs::Program { package: "bench-guest", feature: "bare", sources }.build("guest");
}
