//! How the program is linked: one segment at a fixed address, with nothing of libc and no start files.
fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    println!("cargo:rerun-if-changed=guest.ld");
    println!("cargo:rustc-link-arg-bins=-Wl,-T,{here}/guest.ld");
    for argument in ["-static", "-no-pie", "-nostartfiles", "-nostdlib", "-Wl,--gc-sections", "-Wl,--build-id=none"] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
