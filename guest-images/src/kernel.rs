//! Finds the guest kernels that `guest-images/kernel/build.sh` leaves in the cache directory.

use std::path::{Path, PathBuf};
use std::{env, fmt, fs, io};

/// Which host a kernel is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelKind {
    /// Hosts with VT-x or AMD-V.
    Hardware,
    /// Software-nested KVM, where guest ring 0 is emulated.
    Nested,
}

impl fmt::Display for KernelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KernelKind::Hardware => "hardware",
            KernelKind::Nested => "nested",
        })
    }
}

/// A built kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// An ELF `vmlinux`.
    pub path: PathBuf,
    /// The command line it is made to be started with, before what the VM adds.
    pub cmdline: String,
}

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Nowhere to look.
    #[error("cannot find the kernel cache: set BULKHEAD_CACHE, XDG_CACHE_HOME or HOME")]
    NoCacheDir,
    /// It was not built.
    #[error("no guest kernel for {kind} hosts at '{}'; build it with `guest-images/kernel/build.sh --flavour {kind}`, or name one with --kernel", path.display())]
    NotBuilt {
        /// The kind asked for.
        kind: KernelKind,
        /// Where it should be.
        path: PathBuf,
    },
    /// A file of it cannot be read.
    #[error("guest kernel: cannot read '{}': {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// `${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}`, empty variables counting as unset.
///
/// # Errors
/// None of the three variables is set.
pub fn cache_dir() -> Result<PathBuf, KernelError> {
    let var = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache_home = || var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|home| home.join(".cache")));
    var("BULKHEAD_CACHE").or_else(|| cache_home().map(|dir| dir.join("bulkhead"))).ok_or(KernelError::NoCacheDir)
}

/// The kernel of that kind in the cache.
///
/// # Errors
/// See [`KernelError`].
pub fn find(kind: KernelKind) -> Result<Kernel, KernelError> {
    find_in(&cache_dir()?, kind)
}

/// As [`find`], in a given cache directory.
///
/// # Errors
/// See [`KernelError`].
pub fn find_in(cache: &Path, kind: KernelKind) -> Result<Kernel, KernelError> {
    let dir = cache.join("kernel").join(kind.to_string());
    let path = dir.join("vmlinux");
    if !path.is_file() {
        return Err(KernelError::NotBuilt { kind, path });
    }
    let cmdline_path = dir.join("cmdline");
    let text = fs::read_to_string(&cmdline_path);
    let text = text.map_err(|source| KernelError::Read { path: cmdline_path, source })?;
    let cmdline = text.split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(Kernel { path, cmdline })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_built_and_says_how_to_build_the_rest() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let nested = dir.path().join("kernel/nested");
        fs::create_dir_all(&nested).expect("writable");
        fs::write(nested.join("vmlinux"), b"ELF").expect("writable");
        fs::write(nested.join("cmdline"), "quiet  reboot=k\n panic=-1\n").expect("writable");
        let kernel = find_in(dir.path(), KernelKind::Nested).expect("is there");
        assert_eq!(kernel.cmdline, "quiet reboot=k panic=-1");
        let error = find_in(dir.path(), KernelKind::Hardware).expect_err("is not").to_string();
        assert!(error.contains("build.sh --flavour hardware"), "{error}");
    }
}
