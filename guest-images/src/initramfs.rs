//! The initramfs of container VMs: a cpio archive ("newc" format, kernel: Documentation/driver-api/early-userspace/
//! buffer-format.rst) with `/init`, `/dev` and `/dev/console`, built in memory.

/// What the kernel needs to run `init` as its first process, with standard streams on the console.
///
/// # Panics
/// `init` is longer than 4 GiB, which the format cannot express.
pub fn cpio(init: &[u8]) -> Vec<u8> {
    let mut archive = Vec::with_capacity(init.len() + 1024);
    push(&mut archive, 1, "dev", 0o040_755, (0, 0), b"");
    push(&mut archive, 2, "dev/console", 0o020_600, (5, 1), b"");
    push(&mut archive, 3, "init", 0o100_755, (0, 0), init);
    push(&mut archive, 4, "TRAILER!!!", 0, (0, 0), b"");
    archive
}

fn push(archive: &mut Vec<u8>, ino: u32, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
    let size = u32::try_from(data.len()).expect("an init of less than 4 GiB");
    let nlink = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
    archive.extend_from_slice(b"070701");
    // ino, mode, uid, gid, nlink, mtime, size, device of the archive (2), of the node (2), name's length, checksum.
    for field in [ino, mode, 0, 0, nlink, 0, size, 0, 0, device.0, device.1, name.len() as u32 + 1, 0] {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    type Entry = (String, u32, (u32, u32), Vec<u8>);

    /// Reads an archive back: name, mode, node, data.
    fn read(mut archive: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut at = 0;
        while !archive.is_empty() {
            assert_eq!(&archive[..6], b"070701");
            let field = |i: usize| {
                let text = std::str::from_utf8(&archive[6 + 8 * i..][..8]).expect("ASCII");
                u32::from_str_radix(text, 16).expect("hex")
            };
            let (name_len, size) = (field(11) as usize, field(6) as usize);
            let name = String::from_utf8(archive[110..110 + name_len - 1].to_vec()).expect("UTF-8");
            let data_at = (110 + name_len).next_multiple_of(4);
            entries.push((name, field(1), (field(9), field(10)), archive[data_at..data_at + size].to_vec()));
            let next = (data_at + size).next_multiple_of(4);
            at += next;
            assert_eq!(at % 4, 0);
            archive = &archive[next..];
        }
        entries
    }

    #[test]
    fn archive_has_init_and_console_only() {
        let entries = read(&cpio(b"#!init"));
        let expected = [
            ("dev", 0o040_755, (0, 0), &b""[..]),
            ("dev/console", 0o020_600, (5, 1), b""),
            ("init", 0o100_755, (0, 0), b"#!init"),
            ("TRAILER!!!", 0, (0, 0), b""),
        ];
        let expected = expected.map(|(n, m, d, b)| (n.to_owned(), m, d, b.to_vec()));
        assert_eq!(entries, expected);
    }
}
