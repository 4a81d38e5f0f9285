//! PID 1 of a bare microVM: measures read-only file systems on virtio disks. docs/images.md has what came out.
//!
//!     rustc --edition 2024 -O -C target-feature=+crt-static -C strip=symbols -o init tests/guest/disks.rs
//!     echo init | cpio -o -H newc >initrd
//!     bulkhead boot --kernel vmlinux --initrd initrd --append fs=erofs,squashfs --disk a.erofs,ro --disk b.squashfs,ro
//!
//! For each disk (its type from `fs=`, in order) a line for each step: mounting, walking /usr by directory entries, walking it
//! with a stat of each file, reading every byte of it (of /usr/bin alone with `read=bin`). Page cache, dentries and inodes are
//! dropped before each. A step's line has its time, block requests, bytes read, and what the kernel holds in memory afterwards
//! that it did not before.
//! It checks nothing.

use std::ffi::{CString, c_char, c_int, c_ulong, c_void};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

unsafe extern "C" {
    fn mount(from: *const c_char, to: *const c_char, kind: *const c_char, flags: c_ulong, data: *const c_void)
    -> c_int;
    fn umount2(at: *const c_char, flags: c_int) -> c_int;
    fn reboot(how: c_int) -> c_int;
}

const READ_ONLY: c_ulong = 1;
const POWER_OFF: c_int = 0x4321_fedc;

fn attach(from: &str, to: &str, kind: &str, flags: c_ulong) -> std::io::Result<()> {
    let [from, to, kind] = [from, to, kind].map(|text| CString::new(text).expect("no NUL"));
    // SAFETY: three C strings that outlive the call; no data.
    let done = unsafe { mount(from.as_ptr(), to.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// What the kernel says of itself.
#[derive(Clone, Copy, Default)]
struct Counters {
    requests: u64,
    sectors: u64,
    /// Page cache, buffers and slab, KiB.
    memory: u64,
}

impl Counters {
    fn now(disk: &str) -> Counters {
        let stat = fs::read_to_string(format!("/sys/block/{disk}/stat")).unwrap_or_default();
        let stat: Vec<u64> = stat.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let field = |line: &str| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok();
        let counted = ["Buffers:", "Cached:", "Slab:"];
        let memory = text.lines().filter(|l| counted.iter().any(|name| l.starts_with(name))).filter_map(field).sum();
        Counters { requests: stat.first().copied().unwrap_or(0), sectors: stat.get(2).copied().unwrap_or(0), memory }
    }
}

fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "3").expect("drop_caches");
}

/// Every entry below `dir`, by what `look` does with a file's path and whether the entry is a directory.
fn walk(dir: &Path, look: &mut impl FnMut(&Path, bool)) -> u64 {
    let mut todo: Vec<PathBuf> = vec![dir.to_owned()];
    let mut count = 0;
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("a directory") {
            let entry = entry.expect("an entry");
            let kind = entry.file_type().expect("its type");
            count += 1;
            let path = entry.path();
            look(&path, kind.is_dir());
            if kind.is_dir() {
                todo.push(path);
            }
        }
    }
    count
}

fn read_all(dir: &Path) -> u64 {
    let mut buffer = vec![0; 64 << 10];
    let mut bytes = 0;
    walk(dir, &mut |path, is_dir| {
        if is_dir || !path.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
            return;
        }
        let mut file = fs::File::open(path).expect("a file");
        loop {
            match file.read(&mut buffer).expect("its bytes") {
                0 => break,
                n => bytes += n as u64,
            }
        }
    });
    bytes
}

fn step(disk: &str, kind: &str, name: &str, work: impl FnOnce() -> u64) {
    drop_caches();
    let before = Counters::now(disk);
    let began = Instant::now();
    let result = work();
    let took = began.elapsed();
    let after = Counters::now(disk);
    println!(
        "{disk} {kind:9} {name:6} {:9.1} ms  {:6} requests  {:8} KiB read  {:7} KiB held  ({result})",
        took.as_secs_f64() * 1e3,
        after.requests - before.requests,
        (after.sectors - before.sectors) / 2,
        after.memory as i64 - before.memory as i64,
    );
}

fn measure(disk: &str, kind: &str, read: &str) {
    let device = format!("/dev/{disk}");
    step(disk, kind, "mount", || match attach(&device, "/mnt", kind, READ_ONLY) {
        Ok(()) => 0,
        Err(e) => panic!("{disk} as {kind}: {e}"),
    });
    let usr = Path::new("/mnt/usr");
    step(disk, kind, "find", || walk(usr, &mut |_, _| {}));
    step(disk, kind, "stat", || walk(usr, &mut |path, _| drop(path.symlink_metadata())));
    step(disk, kind, "read", || read_all(&usr.join(read)));
    let at = CString::new("/mnt").expect("no NUL");
    // SAFETY: a C string that outlives the call.
    unsafe { umount2(at.as_ptr(), 0) };
}

fn main() {
    for dir in ["/proc", "/sys", "/dev", "/mnt"] {
        let _ = fs::create_dir(dir);
    }
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        // The kernel may have mounted devtmpfs itself.
        let _ = attach(kind, at, kind, 0);
    }
    let words = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let value = |key: &str| words.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)).unwrap_or("");
    let (kinds, read) = (value("fs="), value("read="));
    for (disk, kind) in ('a'..='z').zip(kinds.split(',').filter(|kind| !kind.is_empty())) {
        measure(&format!("vd{disk}"), kind, read);
    }
    // SAFETY: it takes a number and ends the machine.
    unsafe { reboot(POWER_OFF) };
}
