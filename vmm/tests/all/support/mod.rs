//! What tests with machines of a few instructions share.

use std::path::PathBuf;

use vmm::{Machine, VmConfig};

/// A guest of a few instructions, in a file.
pub struct Kernel(tempfile::TempDir);

impl Kernel {
    /// An ELF file with `code` at 1 MiB.
    pub fn new(code: &[u8]) -> Self {
        const BASE: u64 = 0x10_0000;
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        let words = |file: &mut Vec<u8>, words: &[u64]| words.iter().for_each(|w| file.extend(w.to_le_bytes()));
        words(&mut file, &[BASE, 64, 0]);
        file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0]);
        words(&mut file, &[120, BASE, BASE, code.len() as u64, code.len() as u64, 1]);
        file.extend(code);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("kernel"), file).unwrap();
        Kernel(dir)
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.0.path().join("kernel")
    }

    /// A machine of 32 MiB for it.
    pub fn config(&self, vcpus: u8) -> VmConfig {
        let json = serde_json::json!({ "boot-source": { "kernel_image_path": self.path() },
                                       "machine-config": { "vcpu_count": vcpus, "mem_size_mib": 32 } });
        VmConfig::from_json(&json.to_string()).unwrap()
    }

    /// The machine, built.
    pub fn machine(&self, vcpus: u8) -> Machine {
        Machine::build(&self.config(vcpus), None, &mut |_| {}).unwrap()
    }
}

/// No KVM here, said loudly.
pub fn no_kvm(test: &str) -> bool {
    let problem = vmm::host::open().err();
    if let Some(problem) = &problem {
        eprintln!("SKIP {test}: {problem}");
    }
    problem.is_some()
}
