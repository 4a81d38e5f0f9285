//! KVM's answer to KVM_GET_SUPPORTED_CPUID, kept in a file.
//!
//! KVM makes that answer with some sixty CPUID instructions. Where the host is a virtual machine itself, each of them leaves
//! to its hypervisor: 0.3 ms, more than the rest of a machine's set-up. The answer is the same until the host boots, loads
//! another KVM or finds itself on another processor; all of that is in the file's [`Key`].
//!
//! ```text
//! magic and version, 8 bytes · key · number of entries, u32 · entries, 7 u32 each · FNV-1a of all before, u64
//! ```
//!
//! Numbers are little-endian. A file that is missing, another user's, damaged or of another key is not an error: KVM is
//! asked, and the file replaced if the place allows it. The worst that a wrong file can do is to tell a guest of a
//! processor that it does not have.

use std::arch::x86_64::__cpuid_count;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

use crate::open;

/// Raise the digit with the format.
const MAGIC: &[u8; 8] = b"BHCPUID1";
/// Bytes of one entry.
const ENTRY: usize = 7 * 4;
/// The modules that make the answer: KVM's core and its back ends.
const MODULES: [&str; 4] = ["/sys/module/kvm", "/sys/module/kvm_amd", "/sys/module/kvm_intel", "/sys/module/kvm_pvm"];
/// The leaves that name a processor and its features, with what of EAX to EDX is compared: leaf 1 says in EBX which CPU
/// asked and in ECX bit 27 whether it has OSXSAVE on.
const LEAVES: [(u32, [u32; 4]); 3] = [(1, [!0, 0, !(1 << 27), !0]), (7, [!0; 4]), (0x8000_0001, [!0; 4])];
/// Bytes of a boot id: a UUID as text.
const BOOT_ID: usize = 36;
/// No file of ours is longer.
const MAX_FILE: u64 = 16 << 10;

/// Everything that the answer depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key(Vec<u8>);

impl Key {
    /// This host's, now; `None` where it cannot be told.
    fn of_this_host() -> Option<Key> {
        // In one read: its length is known (random(4)), and a file in /proc does not say it.
        let mut key = vec![0; BOOT_ID];
        File::open("/proc/sys/kernel/random/boot_id").ok()?.read_exact(&mut key).ok()?;
        for module in MODULES {
            // The inode is made when the module is loaded, and its number is not used again in this boot.
            let inode = fs::metadata(module).map_or(0, |meta| meta.ino());
            key.extend(inode.to_le_bytes());
        }
        for (leaf, mask) in LEAVES {
            let got = __cpuid_count(leaf, 0);
            for (register, mask) in [got.eax, got.ebx, got.ecx, got.edx].into_iter().zip(mask) {
                key.extend((register & mask).to_le_bytes());
            }
        }
        Some(Key(key))
    }
}

/// What KVM supports: from the file `cache` if there is one and it is this host's, else from KVM.
pub fn supported(kvm: &Kvm, cache: Option<&Path>) -> Result<CpuId, kvm_ioctls::Error> {
    let place = cache.and_then(|path| Some((path, Key::of_this_host()?)));
    if let Some((path, key)) = &place {
        match read(path, key) {
            Ok(answer) => return Ok(answer),
            Err(why) => tracing::debug!("{}: {why}", path.display()),
        }
    }
    let answer = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    if let Some((path, key)) = &place
        && let Err(why) = open::put(path, &encode(key, answer.as_slice()))
    {
        tracing::debug!("{}: {why}", path.display());
    }
    Ok(answer)
}

fn unusable(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn read(path: &Path, key: &Key) -> io::Result<CpuId> {
    // Not blocking: whoever put a pipe there would have us wait.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || (meta.uid() != open::user() && meta.uid() != 0) || meta.mode() & 0o022 != 0 {
        return Err(unusable("not a file that only its owner, this user or root, may write"));
    }
    if meta.len() > MAX_FILE {
        return Err(unusable("too long"));
    }
    let mut bytes = vec![0; meta.len() as usize];
    file.read_exact(&mut bytes)?;
    decode(&bytes, key)
}

fn encode(key: &Key, entries: &[kvm_cpuid_entry2]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(&key.0);
    bytes.extend((entries.len() as u32).to_le_bytes());
    for e in entries {
        for word in [e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx] {
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes.extend(checksum(&bytes).to_le_bytes());
    bytes
}

fn decode(bytes: &[u8], key: &Key) -> io::Result<CpuId> {
    let (body, sum) = bytes.split_last_chunk().ok_or_else(|| unusable("too short"))?;
    if u64::from_le_bytes(*sum) != checksum(body) {
        return Err(unusable("damaged"));
    }
    let body = body.strip_prefix(MAGIC).ok_or_else(|| unusable("another version"))?;
    let body = body.strip_prefix(&key.0[..]).ok_or_else(|| unusable("of another boot, KVM or processor"))?;
    let (count, body) = body.split_first_chunk().ok_or_else(|| unusable("too short"))?;
    if body.len() % ENTRY != 0 || body.len() / ENTRY != u32::from_le_bytes(*count) as usize || body.is_empty() {
        return Err(unusable("number of entries"));
    }
    let entries: Vec<kvm_cpuid_entry2> = body.chunks_exact(ENTRY).map(entry).collect();
    CpuId::from_entries(&entries).map_err(|_| unusable("more entries than KVM takes"))
}

fn entry(bytes: &[u8]) -> kvm_cpuid_entry2 {
    let mut words = [0; ENTRY / 4];
    for (word, four) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
    }
    let [function, index, flags, eax, ebx, ecx, edx] = words;
    kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
}

/// FNV-1a, 64 bits: against damage, not against an enemy, who would have to be this user.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Reads any bytes.
#[cfg(feature = "testing")]
pub fn fuzz(bytes: &[u8], signed: bool) {
    let key = Key(vec![7; BOOT_ID]);
    let mut bytes = bytes.to_vec();
    if signed {
        bytes.splice(..0, [&MAGIC[..], &key.0].concat());
        bytes.extend(checksum(&bytes).to_le_bytes());
    }
    if let Ok(answer) = decode(&bytes, &key) {
        assert_eq!(encode(&key, answer.as_slice()), bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn key() -> Key {
        Key(vec![7; 40])
    }

    fn entries() -> Vec<kvm_cpuid_entry2> {
        let leaf = |n| kvm_cpuid_entry2 {
            function: n,
            index: 1,
            flags: 2,
            eax: 3,
            ebx: 4,
            ecx: 5,
            edx: 6,
            ..Default::default()
        };
        (0..60).map(leaf).collect()
    }

    fn put(path: &Path, bytes: &[u8]) {
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    #[test]
    fn what_is_written_reads_back_and_replaces_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cpuid");
        for count in [60, 3] {
            open::put(&path, &encode(&key(), &entries()[..count])).unwrap();
            assert_eq!(read(&path, &key()).unwrap().as_slice(), &entries()[..count]);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn damage_anywhere_is_noticed() {
        let good = encode(&key(), &entries()[..3]);
        assert!(decode(&good, &key()).is_ok());
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 0x10;
            assert!(decode(&bad, &key()).is_err(), "byte {i}");
            assert!(decode(&good[..i], &key()).is_err(), "{i} bytes");
        }
        // Right sums over wrong counts.
        let resum = |mut body: Vec<u8>| {
            body.extend(checksum(&body).to_le_bytes());
            body
        };
        let body = &good[..good.len() - 8];
        assert!(decode(&resum(body[..body.len() - ENTRY].to_vec()), &key()).is_err());
        assert!(decode(&encode(&key(), &[]), &key()).is_err());
        assert!(decode(&encode(&key(), &[entries()[0]; 300]), &key()).is_err());
    }

    #[test]
    fn another_boot_kvm_or_processor_is_another_key() {
        assert!(decode(&encode(&Key(vec![8; 40]), &entries()), &key()).is_err());
        let host = Key::of_this_host().unwrap();
        assert_eq!(Key::of_this_host().unwrap(), host);
        assert_eq!(host.0.len(), BOOT_ID + 8 * MODULES.len() + 16 * LEAVES.len());
    }

    #[test]
    fn a_file_that_others_could_have_written_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cpuid");
        put(&path, &encode(&key(), &entries()));
        assert!(read(&path, &key()).is_ok());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
        assert!(read(&path, &key()).is_err());
        let link = dir.path().join("link");
        put(&path, &encode(&key(), &entries()));
        symlink(&path, &link).unwrap();
        assert!(read(&link, &key()).is_err());
        assert!(read(dir.path(), &key()).is_err());
        if open::user() == 0 {
            std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
            assert!(read(&path, &key()).is_err());
        }
    }

    #[test]
    fn no_file_is_put_where_others_may_write() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(open::put(&open.join("cpuid"), b"x").is_err());
        assert!(open::put(&dir.path().join("missing/cpuid"), b"x").is_err());
        assert_eq!(fs::read_dir(&open).unwrap().count(), 0);
    }

    #[test]
    fn kvm_is_asked_once_and_says_the_same() {
        let Ok(kvm) = crate::host::open() else {
            eprintln!("SKIP kvm_is_asked_once_and_says_the_same: no KVM here");
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cpuid");
        let first = supported(&kvm, Some(&path)).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        let second = supported(&kvm, Some(&path)).unwrap();
        assert_eq!(first.as_slice(), second.as_slice());
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "a good file is not written again");
        put(&path, b"garbage");
        assert_eq!(supported(&kvm, Some(&path)).unwrap().as_slice().len(), first.as_slice().len());
        assert_ne!(fs::read(&path).unwrap(), b"garbage");
    }
}
