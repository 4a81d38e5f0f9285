//! How the program is linked: static, at fixed addresses, with nothing of libc and no start files.
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for argument in ["-static", "-no-pie", "-nostartfiles", "-nostdlib", "-Wl,--gc-sections", "-Wl,--build-id=none"] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    // One segment that can be loaded with few page faults; sections aligned to a page would spread the program out.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,noseparate-code");
    println!("cargo:rustc-link-arg-bins=-Wl,-z,norelro");
}
