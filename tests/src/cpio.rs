//! An initramfs with one program in it (kernel document driver-api/early-userspace/buffer-format).

/// The archive: `program` as /init, with a console to write to and a directory for devices.
pub fn initramfs(program: &[u8]) -> Vec<u8> {
    const DIRECTORY: u32 = 0o040_755;
    const CONSOLE: u32 = 0o020_600;
    const EXECUTABLE: u32 = 0o100_755;
    let mut archive = Vec::new();
    entry(&mut archive, "dev", DIRECTORY, (0, 0), &[]);
    entry(&mut archive, "dev/console", CONSOLE, (5, 1), &[]);
    entry(&mut archive, "init", EXECUTABLE, (0, 0), program);
    entry(&mut archive, "TRAILER!!!", 0, (0, 0), &[]);
    archive
}

/// Adds a file; `device` is its major and minor number, if it is one.
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
    let number = archive.len() as u32;
    let size = data.len() as u32;
    archive.extend(b"070701");
    // Inode, mode, owner, group, links, time, size, device of the file, device that it is, length of the name, checksum.
    for field in [number, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name.len() as u32 + 1, 0] {
        archive.extend(format!("{field:08x}").bytes());
    }
    for part in [&[name.as_bytes(), &[0]].concat()[..], data] {
        archive.extend(part);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
}
