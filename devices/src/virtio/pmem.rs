//! Persistent memory (virtio 1.3, 5.19), for reading only: a file of the host in the guest's address space.
//!
//! The guest uses the host's page cache in place (DAX), so any number of machines share one copy of the file in RAM, and none keeps
//! a copy of its own. Nothing that a guest writes there is kept, nor seen by anybody: KVM gives a write to read-only memory to the
//! machine, which drops it. So the one request there is, to bring writes to stable storage, fails: whoever asks for it has written.

use std::io;
#[cfg(any(test, feature = "testing"))]
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::table::{Built, DeviceError, DeviceKind, check_state_version};
use super::window::{AddressSpace, Window};
use super::{DeviceFault, DeviceInfo, Io, StateError, VirtioDevice, backing};

const SECTION: &str = "pmem";
const NAME: &str = "pmem";
const STATE_VERSION: u32 = 1;
/// `ret` of a request that failed (5.19.6.2).
const FAILED: i32 = -1;

/// Its line of the table.
pub const KIND: DeviceKind = DeviceKind {
    name: NAME,
    config_key: SECTION,
    flag: "pmem",
    flag_syntax: "FILE",
    help: "a file as read-only memory /dev/pmem0, /dev/pmem1, ...: the guest uses the host's copy (mount -o ro,dax)",
    parse_flag,
    id_key: Some("id"),
    swappable: &[],
    adjustable: &[],
    limiters: &[],
    told: None,
    writable_files: |_| Vec::new(),
    reaches: |_| Vec::new(),
    check: |section| parse(section).and_then(|memories| check(&memories)),
    build,
    given: None,
    kernel_args,
    // A flush.
    syscalls: &[libc::SYS_fdatasync],
    prompt_syscalls: &[],
    ioctls: &[],
    workers: &[],
    works: |_| true,
    #[cfg(any(test, feature = "testing"))]
    sample,
};

/// One of them, as in files for Firecracker.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Memory {
    id: String,
    /// A file or block device.
    path_on_host: PathBuf,
    /// The kernel is told to mount it as its root.
    #[serde(default)]
    root_device: bool,
    /// Must be true.
    #[serde(default)]
    read_only: bool,
}

fn invalid(reason: String) -> DeviceError {
    DeviceError::Invalid { section: SECTION, reason }
}

fn parse(section: &Value) -> Result<Vec<Memory>, DeviceError> {
    serde_json::from_value(section.clone()).map_err(DeviceError::section(SECTION))
}

fn parse_flag(value: &str, section: &mut Value) -> Result<(), DeviceError> {
    if value.is_empty() {
        return Err(DeviceError::Invalid { section: "--pmem", reason: "no file; write FILE".into() });
    }
    let mut memories = if section.is_null() { Vec::new() } else { parse(section)? };
    let id = format!("pmem{}", memories.len());
    memories.push(Memory { id, path_on_host: value.into(), root_device: false, read_only: true });
    *section = serde_json::to_value(memories).map_err(DeviceError::section(SECTION))?;
    Ok(())
}

/// What can be told without opening anything.
fn check(memories: &[Memory]) -> Result<(), DeviceError> {
    if memories.iter().filter(|memory| memory.root_device).count() > 1 {
        return Err(invalid("more than one is the root device".into()));
    }
    for (index, memory) in memories.iter().enumerate() {
        let id = &memory.id;
        if memories.iter().take(index).any(|other| other.id == *id) {
            return Err(invalid(format!("two have the id '{id}'")));
        }
        if !memory.read_only {
            let reason =
                format!("'{id}' is not \"read_only\": true, and none that is written to can be had; use a drive");
            return Err(invalid(reason));
        }
    }
    Ok(())
}

fn build(section: &Value) -> Built {
    let memories = parse(section)?;
    check(&memories)?;
    memories.iter().map(|memory| Ok(Box::new(open(memory)?) as Box<dyn VirtioDevice>)).collect()
}

fn open(memory: &Memory) -> Result<Pmem, DeviceError> {
    let path = &memory.path_on_host;
    let (file, bytes) = backing::open(SECTION, path, false)?;
    if bytes == 0 {
        return Err(invalid(format!("{} is empty", path.display())));
    }
    let window =
        Window::map(&file, bytes).map_err(DeviceError::host(SECTION, format!("mapping {}", path.display())))?;
    Ok(Pmem { window: Arc::new(window), config: [0; CONFIG_LEN] })
}

/// `root=` for the one that is the root device.
fn kernel_args(section: &Value) -> Option<String> {
    let index = parse(section).ok()?.iter().position(|memory| memory.root_device)?;
    Some(format!("root=/dev/pmem{index} ro"))
}

#[cfg(any(test, feature = "testing"))]
fn sample(dir: &Path) -> Value {
    let path = dir.join("memory.img");
    let made = std::fs::write(&path, SAMPLE);
    assert!(made.is_ok(), "{made:?}");
    serde_json::json!([{ "id": "sample", "path_on_host": path, "read_only": true }])
}

#[cfg(any(test, feature = "testing"))]
const SAMPLE: &[u8] = b"what the host has";

/// `start` and `size` (5.19.4).
const CONFIG_LEN: usize = 16;

/// The device.
struct Pmem {
    window: Arc<Window>,
    config: [u8; CONFIG_LEN],
}

impl Pmem {
    fn state(&self) -> Value {
        let [start, size] = [0, 8].map(|at| {
            let bytes = self.config.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        });
        serde_json::json!({ "version": STATE_VERSION, "start": start, "size": size })
    }
}

impl VirtioDevice for Pmem {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { name: NAME, id: 27, features: 0, queue_sizes: &[64], prompt: false }
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn show(&mut self, space: &mut dyn AddressSpace) -> io::Result<()> {
        let start = space.show(self.window.clone())?;
        self.config[..8].copy_from_slice(&start.to_le_bytes());
        self.config[8..].copy_from_slice(&self.window.len().to_le_bytes());
        Ok(())
    }

    fn activate(&mut self, _: u64) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn process_queue(&mut self, index: usize, io: &mut Io) -> Result<(), DeviceFault> {
        while let Some(chain) = io.queues[index].pop(io.mem)? {
            let written = chain.writable().write(&FAILED.to_le_bytes());
            io.queues[index].count_error();
            io.queues[index].push(io.mem, chain.head(), written as u32)?;
        }
        Ok(())
    }

    fn quiesce(&mut self, _: &mut Io, _: bool) -> Result<(), DeviceFault> {
        Ok(())
    }

    fn save(&self) -> Result<Value, StateError> {
        Ok(self.state())
    }

    /// What is shown is no state, but it must be as large and in the same place as it was.
    fn load(&mut self, state: &Value) -> Result<(), StateError> {
        check_state_version(NAME, state, STATE_VERSION)?;
        let here = self.state();
        let reason = || format!("the memory is not the same: it was {state}, and this is {here}");
        if *state == here { Ok(()) } else { Err(StateError { device: NAME, reason: reason() }) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Driver, NEEDS_RESET, NEXT, Part, RUNNING, WINDOW, WRITE};
    use super::*;
    use serde_json::json;
    use vm_memory::{Bytes, GuestAddress};

    fn sample_driver() -> (Driver, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let device = build(&sample(dir.path())).unwrap().remove(0);
        (Driver::start(device), dir)
    }

    #[test]
    fn the_guest_sees_the_file_itself_and_zeros_behind_it() {
        let (driver, dir) = sample_driver();
        let place = [0x100, 0x104, 0x108, 0x10c].map(|at| driver.get(at));
        assert_eq!(place, [WINDOW as u32, (WINDOW >> 32) as u32, 2 << 20, 0]);
        let seen = |at: u64| {
            let mut bytes = [1; SAMPLE.len()];
            driver.mem.read_slice(&mut bytes, GuestAddress(WINDOW + at)).unwrap();
            bytes
        };
        assert_eq!((seen(0).as_slice(), seen(1 << 20)), (SAMPLE, [0; SAMPLE.len()]));
        // Not a copy of it.
        std::fs::write(dir.path().join("memory.img"), b"what is new there").unwrap();
        assert_eq!(seen(0).as_slice(), b"what is new there");
    }

    #[test]
    fn a_flush_fails_because_nothing_written_is_kept() {
        let (mut driver, _dir) = sample_driver();
        for (request, room, answer) in [(0u32, 4, 4), (7, 4, 4), (0, 2, 2), (0, 0, 0)] {
            let done = driver.request(0, &[Part::Read(&request.to_le_bytes()), Part::Write(room)]);
            assert_eq!((done.written, done.data), (answer, vec![0xff; room as usize]));
        }
    }

    #[test]
    fn a_request_may_come_from_the_memory_and_nothing_goes_there() {
        let (mut driver, dir) = sample_driver();
        let (table, ..) = driver.parts(0);
        let answer = driver.allocate(4);
        driver.descriptor(table, 0, (WINDOW, 4), NEXT, 1);
        driver.descriptor(table, 1, (answer, 4), WRITE, 0);
        driver.offer(0, 0);
        driver.kick(0);
        driver.wait(|driver| driver.used(0).is_some());
        assert_eq!(driver.status(), RUNNING);
        driver.descriptor(table, 1, (WINDOW, 4), WRITE, 0);
        driver.offer(0, 0);
        driver.kick(0);
        assert!(driver.settle());
        assert_eq!(driver.status(), RUNNING | NEEDS_RESET);
        // No part of a queue, either.
        driver.reset();
        driver.negotiate(u64::MAX);
        for (register, address) in [(0x80, 0x1_0000), (0x90, 0x2_0000), (0xa0, WINDOW)] {
            driver.set(register, address as u32);
            driver.set(register + 4, (address >> 32) as u32);
        }
        driver.set(0x44, 1);
        assert_eq!((driver.get(0x44), driver.status() & NEEDS_RESET), (0, NEEDS_RESET));
        assert_eq!(std::fs::read(dir.path().join("memory.img")).unwrap(), SAMPLE);
    }

    #[test]
    fn it_goes_on_only_where_it_is_as_large_as_before() {
        let dir = tempfile::tempdir().unwrap();
        let section = sample(dir.path());
        let driver = Driver::start(build(&section).unwrap().remove(0));
        let state = driver.lock().save().unwrap();
        Driver::new(build(&section).unwrap().remove(0)).lock().load(&state).unwrap();
        let file = std::fs::File::options().write(true).open(dir.path().join("memory.img")).unwrap();
        file.set_len((2 << 20) + 1).unwrap();
        let error = Driver::new(build(&section).unwrap().remove(0)).lock().load(&state).unwrap_err().to_string();
        assert!(error.contains("not the same") && error.contains("4194304"), "{error}");
    }

    #[test]
    fn bad_sections_say_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty");
        std::fs::write(&empty, b"").unwrap();
        let memory = |path: &str| json!({ "id": "a", "path_on_host": path, "read_only": true });
        let missing = memory("/nonexistent/memory");
        let cases = [
            (json!([{ "id": "a", "path_on_host": "/a" }]), "use a drive"),
            (json!([missing, missing]), "two have the id 'a'"),
            (json!([missing]), "/nonexistent/memory"),
            (json!([memory(empty.to_str().unwrap())]), "is empty"),
            (json!([memory("/dev/null")]), "not a regular file"),
        ];
        for (section, words) in cases {
            let said = build(&section).err().unwrap().to_string();
            assert!(said.contains(words) && said.starts_with("pmem: ") && !said.contains('\n'), "{said}");
        }
    }

    #[test]
    fn the_flag_makes_them_in_order_and_the_root_device_is_told_to_the_kernel() {
        let mut section = Value::Null;
        parse_flag("/a", &mut section).unwrap();
        parse_flag("/b", &mut section).unwrap();
        (KIND.check)(&section).unwrap();
        assert_eq!((&section[1]["id"], &section[1]["path_on_host"]), (&json!("pmem1"), &json!("/b")));
        assert_eq!(kernel_args(&section), None);
        section[1]["root_device"] = true.into();
        assert_eq!(kernel_args(&section).unwrap(), "root=/dev/pmem1 ro");
        assert!(parse_flag("", &mut section).is_err());
    }
}
