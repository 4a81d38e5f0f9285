//! Kernels and initial RAM disks as files: what is no regular file must not be opened, hang, or be read twice.

use std::{fs, os::unix::net::UnixListener, path::Path, process::Command};

use vm_memory::{Bytes, GuestAddress};

use super::{PLATFORM, build::ElfFile, memory};
use crate::{BootError, BootSource, CpuState, Image, Initrd, Protocol, image::ImageError, load};

fn source<'a>(kernel: &'a Path, initrd: Option<Initrd<'a>>) -> BootSource<'a> {
    BootSource { kernel, initrd, cmdline: "", protocol: Protocol::Auto }
}

fn load_file(kernel: &Path, initrd: Option<Initrd<'_>>) -> Result<CpuState, BootError> {
    load(&memory(64 << 20), &source(kernel, initrd), &PLATFORM)
}

#[test]
fn files_load_as_bytes_do() {
    let dir = tempfile::tempdir().unwrap();
    let (kernel, initrd) = (dir.path().join("vmlinux"), dir.path().join("initrd"));
    fs::write(&kernel, ElfFile::kernel().bytes()).unwrap();
    fs::write(&initrd, [0x5a; 5000]).unwrap();
    let mem = memory(64 << 20);
    load(&mem, &source(&kernel, Some(Initrd::File(&initrd))), &PLATFORM).unwrap();
    assert_eq!(mem.read_obj::<[u8; 6]>(GuestAddress(super::build::DATA)).unwrap(), *b"data\0\0");
    let mut disk = vec![0; 5001];
    mem.read_slice(&mut disk, GuestAddress((64 << 20) - 0x2000)).unwrap();
    assert!(disk[..5000].iter().all(|byte| *byte == 0x5a) && disk[5000] == 0);
}

#[test]
fn what_is_no_regular_file_is_named_and_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (fifo, socket, empty) = (dir.path().join("fifo"), dir.path().join("socket"), dir.path().join("empty"));
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let _listener = UnixListener::bind(&socket).unwrap();
    fs::write(&empty, "").unwrap();
    let kernel = dir.path().join("vmlinux");
    fs::write(&kernel, ElfFile::kernel().bytes()).unwrap();
    let missing = dir.path().join("missing");
    let cases: [(&Path, &str); 6] = [
        (dir.path(), "is a directory, not a regular file"),
        (&fifo, "is a FIFO, not a regular file"),
        (&socket, "is a socket, not a regular file"),
        (Path::new("/dev/zero"), "is a character device, not a regular file"),
        (&empty, "is empty"),
        (&missing, "cannot open: No such file or directory (os error 2)"),
    ];
    for (path, expected) in cases {
        let said = load_file(path, None).unwrap_err().to_string();
        assert_eq!(said, format!("kernel {}: {expected}", path.display()));
        let said = load_file(&kernel, Some(Initrd::File(path))).unwrap_err().to_string();
        assert_eq!(said, format!("initrd {}: {expected}", path.display()));
    }
    let said = load_file(&kernel, Some(Initrd::Bytes(&[]))).unwrap_err().to_string();
    assert_eq!(said, "initrd (in memory): is empty");
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(0x3000).unwrap();
    let image = Image::open(file.path()).unwrap();
    file.as_file().set_len(0x1000).unwrap();
    let error = image.load(&memory(2 << 20), 0, 0x3000, 0x10_0000).unwrap_err();
    assert!(matches!(error, ImageError::Load { offset: 0, len: 0x3000, addr: 0x10_0000, .. }));
    assert!(matches!(image.read_at(&mut [0; 8], 0x1000), Err(ImageError::Read { offset: 0x1000, len: 8, .. })));
}
