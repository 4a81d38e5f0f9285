//! The `drives` section and the `--disk` flag, and how they become open files.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::disk::Disk;
use super::engine::Choice;
use super::qcow2::Image;
use super::{Blk, Options, QUEUE_SIZES, SECTOR};
use crate::virtio::limit::{Direction, RateLimiter, Scope};
use crate::virtio::table::{Built, DeviceError, DeviceKind, Given};
use crate::virtio::{VirtioDevice, backing};

const SECTION: &str = "drives";

/// Its line of the table.
pub const KIND: DeviceKind = DeviceKind {
    name: "blk",
    config_key: SECTION,
    flag: "disk",
    flag_syntax: "FILE[,ro][,raw|qcow2]",
    help: "a disk image as /dev/vda, /dev/vdb, ... in the order given; ro: read-only; raw unless it is named .qcow2",
    parse_flag,
    id_key: Some("drive_id"),
    swappable: &["path_on_host", "extents", "capacity"],
    adjustable: &[],
    limiters: &[
        ("rate_limiter", Scope::All),
        ("read_rate_limiter", Scope::Only(Direction::ToGuest)),
        ("write_rate_limiter", Scope::Only(Direction::FromGuest)),
    ],
    told: None,
    writable_files,
    reaches: |_| Vec::new(),
    check: |section| parse(section).and_then(|drives| check(&drives)),
    build,
    given: Some(Given { count: |section| wanted(section).map(|(_, count)| count), build: build_given, opens: true }),
    kernel_args,
    syscalls: &[
        libc::SYS_preadv,
        libc::SYS_io_uring_enter,
        // Where there is no thread to be had.
        libc::SYS_pwritev,
        libc::SYS_fdatasync,
        libc::SYS_fallocate,
    ],
    prompt_syscalls: &[libc::SYS_preadv],
    ioctls: &[],
    workers: &[&super::engine::pool::DISK],
    works: |_| true,
    #[cfg(any(test, feature = "testing"))]
    sample,
};

/// One drive, as in the configuration.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Drive {
    drive_id: String,
    /// A raw file or block device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_on_host: Option<PathBuf>,
    /// What is in `path_on_host`. It is never guessed from what is there: a guest could write anything into a raw disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    format: Option<Format>,
    /// Files that make up one read-only disk, instead of `path_on_host`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    extents: Vec<PathBuf>,
    /// Bytes of the disk that `extents` are the beginning of; the rest is zeros. Without extents it may be writable: then it is the
    /// place of a disk to come, which keeps nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    capacity: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    is_read_only: Option<bool>,
    /// The kernel is told to mount it as its root.
    #[serde(default)]
    is_root_device: bool,
    /// As in files for Firecracker, whose two are the same here: a flush is always done, and a guest that does not flush
    /// gets its writes flushed one by one. With ours, `Writethrough`, every guest does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cache_type: Option<CacheType>,
    /// As in files for Firecracker: by io_uring (where the host has it, and the default) or without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    io_engine: Option<IoEngine>,
    /// 1 to 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    num_queues: Option<u16>,
    /// As in files for Firecracker: of reads and writes together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rate_limiter: Option<RateLimiter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    read_rate_limiter: Option<RateLimiter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    write_rate_limiter: Option<RateLimiter>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
enum CacheType {
    Unsafe,
    Writeback,
    Writethrough,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    Raw,
    Qcow2,
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
enum IoEngine {
    Sync,
    Async,
}

fn invalid(reason: String) -> DeviceError {
    DeviceError::Invalid { section: SECTION, reason }
}

fn parse(section: &Value) -> Result<Vec<Drive>, DeviceError> {
    serde_json::from_value(section.clone()).map_err(DeviceError::section(SECTION))
}

/// The file name decides on the format unless an option does: it is the host's choice, as the file's content may not be.
fn parse_flag(value: &str, section: &mut Value) -> Result<(), DeviceError> {
    let (mut path, mut read_only, mut format) = (value, false, None);
    while let Some((before, option)) = path.rsplit_once(',') {
        match option {
            "ro" => read_only = true,
            "rw" => read_only = false,
            "raw" => format = Some("raw"),
            "qcow2" => format = Some("qcow2"),
            _ if option.contains('/') || Path::new(path).exists() => break,
            _ => {
                return Err(flag_error(format!(
                    "'{option}' is not an option of a disk; there are ro, rw, raw and qcow2"
                )));
            }
        }
        path = before;
    }
    if path.is_empty() {
        return Err(flag_error("no file; write FILE, FILE,ro or FILE,qcow2".into()));
    }
    let named = Path::new(path).extension().is_some_and(|extension| extension == "qcow2").then_some("qcow2");
    let mut drives = if section.is_null() { Vec::new() } else { parse(section)? };
    let drive = serde_json::json!({ "drive_id": format!("disk{}", drives.len()), "path_on_host": path,
                                    "format": format.or(named), "is_read_only": read_only, "is_root_device": false });
    drives.extend(parse(&Value::Array(vec![drive]))?);
    *section = serde_json::to_value(drives).map_err(DeviceError::section(SECTION))?;
    Ok(())
}

fn flag_error(reason: String) -> DeviceError {
    DeviceError::Invalid { section: "--disk", reason }
}

fn writable_files(section: &mut Value) -> Vec<&mut Value> {
    let drives = section.as_array_mut().map(Vec::as_mut_slice).unwrap_or_default();
    let writable = drives.iter_mut().filter(|drive| drive.get("is_read_only") != Some(&Value::Bool(true)));
    // A drive that has extents has no path.
    writable.filter_map(|drive| drive.get_mut("path_on_host").filter(|path| path.is_string())).collect()
}

/// What can be told without opening anything.
fn check(drives: &[Drive]) -> Result<(), DeviceError> {
    if drives.iter().filter(|drive| drive.is_root_device).count() > 1 {
        return Err(invalid("more than one drive is the root device".into()));
    }
    for (index, drive) in drives.iter().enumerate() {
        let id = &drive.drive_id;
        if drives[..index].iter().any(|other| other.drive_id == *id) {
            return Err(invalid(format!("two drives have the drive_id '{id}'")));
        }
        if drive.path_on_host.is_some() && drive.capacity.is_some() {
            return Err(invalid(format!("drive '{id}' has a path_on_host, whose size is its capacity")));
        }
        if drive.num_queues.is_some_and(|queues| !(1..=QUEUE_SIZES.len()).contains(&queues.into())) {
            return Err(invalid(format!("drive '{id}': num_queues is not 1 to {}", QUEUE_SIZES.len())));
        }
        let has_extents = !drive.extents.is_empty() || drive.capacity.is_some();
        if drive.path_on_host.is_some() == has_extents {
            return Err(invalid(format!("drive '{id}' needs either path_on_host or extents")));
        }
        if has_extents && drive.format == Some(Format::Qcow2) {
            return Err(invalid(format!("drive '{id}' has extents, which are raw")));
        }
        if let Some(capacity) = drive.capacity.filter(|capacity| capacity % SECTOR != 0) {
            return Err(invalid(format!("drive '{id}': the capacity of {capacity} bytes is not whole sectors")));
        }
        if !drive.extents.is_empty() && drive.is_read_only == Some(false) {
            return Err(invalid(format!("drive '{id}' has extents, so it cannot be writable")));
        }
    }
    Ok(())
}

fn build(section: &Value) -> Result<Vec<Box<dyn VirtioDevice>>, DeviceError> {
    let drives = parse(section)?;
    check(&drives)?;
    drives.iter().map(|drive| Ok(Box::new(open(drive)?) as Box<dyn VirtioDevice>)).collect()
}

/// The one drive of a section, and how many files there are behind it.
fn wanted(section: &Value) -> Result<(Drive, usize), DeviceError> {
    let drives = parse(section)?;
    check(&drives)?;
    let [drive]: [Drive; 1] = drives.try_into().map_err(|_| invalid("it is about one drive".into()))?;
    let count = drive.extents.len() + usize::from(drive.path_on_host.is_some());
    Ok((drive, count))
}

/// A drive of files that somebody else has opened: as few of its kind may be written to as if it were opened here.
fn build_given(section: &Value, descriptors: Vec<OwnedFd>) -> Built {
    let (drive, count) = wanted(section)?;
    if descriptors.len() != count {
        return Err(invalid(format!("drive '{}': it takes {count} descriptors", drive.drive_id)));
    }
    Ok(vec![Box::new(assemble(&drive, &mut Source::Given(descriptors.into_iter()))?)])
}

/// Where the files of a drive come from, in their order.
enum Source {
    /// By their paths.
    Opened,
    /// From somebody else.
    Given(std::vec::IntoIter<OwnedFd>),
}

impl Source {
    fn file(&mut self, path: &Path, writable: bool) -> Result<(File, u64), DeviceError> {
        match self {
            Source::Opened => backing::open(SECTION, path, writable),
            Source::Given(descriptors) => {
                let descriptor = descriptors.next().ok_or_else(|| invalid("a descriptor is missing".into()))?;
                backing::take(SECTION, path, descriptor, writable)
            }
        }
    }
}

fn open(drive: &Drive) -> Result<Blk, DeviceError> {
    assemble(drive, &mut Source::Opened)
}

fn assemble(drive: &Drive, source: &mut Source) -> Result<Blk, DeviceError> {
    let id = &drive.drive_id;
    let (disk, read_only) = match &drive.path_on_host {
        Some(path) => {
            let read_only = drive.is_read_only.unwrap_or(false);
            let (file, len) = source.file(path, !read_only)?;
            let disk = match drive.format {
                None | Some(Format::Raw) => Disk::raw(file, len),
                Some(Format::Qcow2) => Disk::of_image(open_image(file, path, !read_only)?),
            };
            let odd = disk.bytes() % SECTOR;
            if odd != 0 {
                tracing::warn!("drive '{id}': the last {odd} bytes are not a whole sector");
            }
            (disk, read_only)
        }
        None => (assemble_extents(drive, source)?, drive.is_read_only.unwrap_or(true)),
    };
    let options = Options {
        read_only,
        write_through: drive.cache_type == Some(CacheType::Writethrough),
        queues: drive.num_queues.unwrap_or(1),
        engine: match drive.io_engine {
            Some(IoEngine::Sync) => Choice::Threads,
            Some(IoEngine::Async) | None => Choice::Uring,
        },
    };
    Blk::new(disk, options, id).map_err(DeviceError::host(SECTION, format!("an event for drive '{id}'")))
}

/// A qcow2 image, which leads to no other file.
fn open_image(file: File, path: &Path, writable: bool) -> Result<Image, DeviceError> {
    let path = path.display();
    Image::new(file, writable).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            let way = "qemu-img convert -O qcow2 makes one that stands alone";
            invalid(format!("{path}: a qcow2 image that leads to other files is not opened; {way}"))
        }
        _ => invalid(format!("{path}: not a qcow2 image that can be used: {error}")),
    })
}

/// The files of a read-only disk, and the zeros after them.
fn assemble_extents(drive: &Drive, source: &mut Source) -> Result<Disk, DeviceError> {
    let id = &drive.drive_id;
    let files = drive.extents.iter().map(|path| source.file(path, false)).collect::<Result<_, _>>()?;
    let disk = Disk::of_extents(files).ok_or_else(|| invalid(format!("drive '{id}' is too large")))?;
    let Some(capacity) = drive.capacity else { return Ok(disk) };
    let bytes = disk.bytes();
    disk.padded_to(capacity)
        .ok_or_else(|| invalid(format!("drive '{id}': {bytes} bytes do not fit its capacity of {capacity}")))
}

/// `root=` for the drive that is the root device.
fn kernel_args(section: &Value) -> Option<String> {
    let drives = parse(section).ok()?;
    let index = drives.iter().position(|drive| drive.is_root_device)?;
    let drive = drives.get(index)?;
    let read_only = drive.is_read_only.unwrap_or(drive.path_on_host.is_none());
    let letter = char::from(b'a' + u8::try_from(index).ok().filter(|index| *index < 26)?);
    Some(format!("root=/dev/vd{letter} {}", if read_only { "ro" } else { "rw" }))
}

#[cfg(any(test, feature = "testing"))]
fn sample(dir: &Path) -> Value {
    let path = dir.join("disk.img");
    let made = std::fs::write(&path, vec![0u8; 1 << 20]);
    assert!(made.is_ok(), "{made:?}");
    serde_json::json!([{ "drive_id": "sample", "path_on_host": path, "num_queues": 2 }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn error(section: Value) -> String {
        build(&section).err().unwrap().to_string()
    }

    #[test]
    fn the_flag_makes_drives_in_order() {
        let mut section = Value::Null;
        parse_flag("/a", &mut section).unwrap();
        parse_flag("/b,ro", &mut section).unwrap();
        let drives = parse(&section).unwrap();
        assert_eq!((drives[0].is_read_only, drives[1].is_read_only), (Some(false), Some(true)));
        assert_eq!(drives[1].path_on_host.as_deref(), Some(Path::new("/b")));
        assert_ne!(drives[0].drive_id, drives[1].drive_id);
        for bad in [",ro", "", "/a,rx", "/a,ro,vmdk"] {
            assert!(parse_flag(bad, &mut section).unwrap_err().to_string().starts_with("--disk: "), "{bad}");
        }
    }

    #[test]
    fn a_flags_name_or_option_says_what_the_format_is() {
        for (flag, path, read_only, format) in [
            ("/a.img", "/a.img", false, None),
            ("/a.qcow2", "/a.qcow2", false, Some(Format::Qcow2)),
            ("/a.qcow2,ro", "/a.qcow2", true, Some(Format::Qcow2)),
            ("/a.qcow2,raw", "/a.qcow2", false, Some(Format::Raw)),
            ("/a,qcow2,ro", "/a", true, Some(Format::Qcow2)),
            ("/a,b/c", "/a,b/c", false, None),
        ] {
            let mut section = Value::Null;
            parse_flag(flag, &mut section).unwrap();
            let drive = parse(&section).unwrap().remove(0);
            assert_eq!((drive.path_on_host, drive.is_read_only), (Some(path.into()), Some(read_only)), "{flag}");
            assert_eq!(drive.format, format, "{flag}");
        }
    }

    #[test]
    fn bad_sections_say_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, [0; 4096]).unwrap();
        let cases = [
            (json!([{ "drive_id": "a" }]), "either path_on_host or extents"),
            (json!([{ "drive_id": "a", "path_on_host": file, "extents": [file] }]), "either"),
            (json!([{ "drive_id": "a", "extents": [file], "is_read_only": false }]), "cannot be writable"),
            (
                json!([{ "drive_id": "a", "extents": [file, file], "capacity": 4096 }]),
                "do not fit its capacity of 4096",
            ),
            (json!([{ "drive_id": "a", "extents": [file], "capacity": 4097 }]), "not whole sectors"),
            (json!([{ "drive_id": "a", "path_on_host": file, "capacity": 4096 }]), "has a path_on_host"),
            (json!([{ "drive_id": "a", "path_on_host": "/nowhere/x" }]), "/nowhere/x"),
            (json!([{ "drive_id": "a", "path_on_host": dir.path(), "is_read_only": true }]), "not a regular file"),
            (json!([{ "drive_id": "a", "path_on_host": file, "cache": 1 }]), "cache"),
            (json!([{ "drive_id": "a", "path_on_host": file, "num_queues": 0 }]), "not 1 to 8"),
            (json!([{ "drive_id": "a", "path_on_host": file, "num_queues": 9 }]), "not 1 to 8"),
            (json!({}), "drives"),
        ];
        for (section, words) in cases {
            let said = error(section);
            assert!(said.contains(words) && !said.contains('\n'), "{said}");
        }
        let twice = json!([{ "drive_id": "a", "path_on_host": file }, { "drive_id": "a", "path_on_host": file }]);
        assert!(error(twice).contains("two drives"));
    }

    #[test]
    fn what_means_nothing_here_is_taken_from_files_for_firecracker() {
        let drive = |key: &str, value: &str| json!([{ "drive_id": "a", "path_on_host": "/a", key: value }]);
        for (key, value) in [("cache_type", "Unsafe"), ("cache_type", "Writeback")] {
            (KIND.check)(&drive(key, value)).unwrap();
        }
        assert!((KIND.check)(&drive("cache_type", "Sloppy")).unwrap_err().to_string().contains("Sloppy"));
        assert!((KIND.check)(&drive("partuuid", "x")).unwrap_err().to_string().contains("partuuid"));
    }

    #[test]
    fn files_that_are_given_are_taken_as_they_were_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, [0; 4096]).unwrap();
        let (given, file) = (KIND.given.unwrap(), || OwnedFd::from(File::open(&path).unwrap()));
        let extents = json!([{ "drive_id": "a", "extents": ["/x", "/y"], "capacity": 1 << 20 }]);
        assert_eq!((given.count)(&extents).unwrap(), 2);
        assert_eq!((given.build)(&extents, vec![file(), file()]).unwrap().len(), 1);
        let empty = json!([{ "drive_id": "a", "capacity": 4096, "is_read_only": false }]);
        assert_eq!(((given.count)(&empty).unwrap(), (given.build)(&empty, Vec::new()).unwrap().len()), (0, 1));
        let disk = json!([{ "drive_id": "a", "path_on_host": "/x" }]);
        let both = File::options().read(true).write(true).open(&path).unwrap();
        assert_eq!((given.build)(&disk, vec![both.into()]).unwrap().len(), 1);
        let error = |section: &Value, descriptors| (given.build)(section, descriptors).err().unwrap().to_string();
        for (section, descriptors, words) in [
            (&extents, vec![file()], "it takes 2 descriptors"),
            (&disk, vec![file()], "/x: it was not opened for writing"),
            (&disk, vec![std::os::unix::net::UnixStream::pair().unwrap().0.into()], "/x is not a regular file"),
        ] {
            let said = error(section, descriptors);
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn a_fifo_is_refused_without_waiting_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: a plain call with a valid string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let section = json!([{ "drive_id": "a", "path_on_host": path, "is_read_only": true }]);
        assert!(error(section).contains("not a regular file"));
    }

    #[test]
    fn the_root_device_is_told_to_the_kernel() {
        let section = json!([{ "drive_id": "a", "path_on_host": "/a" },
                             { "drive_id": "b", "extents": ["/b"], "is_root_device": true }]);
        assert_eq!(kernel_args(&section).unwrap(), "root=/dev/vdb ro");
        assert_eq!(kernel_args(&json!([])), None);
    }
}
