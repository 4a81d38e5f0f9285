//! Link options of the binaries.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Fifteen thousand relative relocations, packed: every start of a microVM's process reads 350 KiB less.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    // It has its data before those are applied to it.
    println!("cargo:rustc-link-arg-bin=bulkhead-vmm=-Wl,-e,bulkhead_start");
}
