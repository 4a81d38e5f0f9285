//! Reads EROFS images as the kernel's documentation describes them; panics where an image breaks a rule.

use std::collections::BTreeMap;

const BLOCK: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub nid: u64,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub nlink: u32,
    pub rdev: u32,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Content of a file, target of a symlink; empty for others.
    pub data: Vec<u8>,
}

impl File {
    pub fn kind(&self) -> u16 {
        self.mode & 0o170_000
    }

    pub fn is_whiteout(&self) -> bool {
        self.kind() == 0o020_000 && self.rdev == 0
    }

    pub fn is_opaque(&self) -> bool {
        self.xattrs.get(&b"trusted.overlay.opaque"[..]).map(Vec::as_slice) == Some(b"y")
    }
}

pub struct Image<'a> {
    bytes: &'a [u8],
    meta: usize,
}

fn le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

impl<'a> Image<'a> {
    /// All files by path (`""` is the root).
    pub fn read(bytes: &'a [u8]) -> BTreeMap<Vec<u8>, File> {
        Self::read_disk(bytes, bytes.len())
    }

    /// The same of the image in the first `own` bytes of a disk.
    pub fn read_disk(bytes: &'a [u8], own: usize) -> BTreeMap<Vec<u8>, File> {
        let sb = &bytes[1024..1152];
        assert_eq!(le(&sb[0..4]), 0xE0F5_E1E2, "magic");
        assert_eq!(sb[12], 12, "block size");
        assert_eq!(le(&sb[80..84]), 0, "no incompatible features");
        assert_eq!(le(&sb[36..40]) as usize * BLOCK, own, "blocks");
        let image = Image { bytes, meta: le(&sb[40..44]) as usize * BLOCK };
        let root = le(&sb[14..16]);
        let mut files = BTreeMap::new();
        let mut seen = BTreeMap::new();
        image.walk(root, root, Vec::new(), &mut files, &mut seen);
        let inodes: std::collections::BTreeSet<u64> = files.values().map(|f: &File| f.nid).collect();
        assert_eq!(inodes.len() as u64, le(&sb[16..24]), "number of inodes");
        for file in files.values().filter(|f| f.kind() != 0o040_000) {
            assert_eq!(u64::from(file.nlink), seen[&file.nid], "links of inode {}", file.nid);
        }
        files
    }

    fn walk(
        &self,
        nid: u64,
        parent: u64,
        path: Vec<u8>,
        files: &mut BTreeMap<Vec<u8>, File>,
        seen: &mut BTreeMap<u64, u64>,
    ) {
        let mut file = self.inode(nid);
        *seen.entry(nid).or_default() += 1;
        if file.kind() == 0o040_000 {
            let entries = entries(&file.data);
            let of = |name: &[u8]| entries.iter().find(|e| e.0 == name).expect("dot entries").1;
            assert_eq!((of(b"."), of(b"..")), (nid, parent), "dot entries of {}", String::from_utf8_lossy(&path));
            let mut subdirs = 0;
            for (name, child, file_type) in entries {
                if name == b"." || name == b".." {
                    continue;
                }
                let inode = self.inode(child);
                let expected = [0o100_000, 0o040_000, 0o020_000, 0o060_000, 0o010_000, 0o140_000, 0o120_000];
                assert_eq!(inode.kind(), expected[usize::from(file_type) - 1], "type in the directory entry");
                subdirs += u32::from(inode.kind() == 0o040_000);
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                self.walk(child, nid, [&path, slash, &name].concat(), files, seen);
            }
            assert_eq!(file.nlink, 2 + subdirs, "links of directory {}", String::from_utf8_lossy(&path));
            file.data.clear();
        }
        files.insert(path, file);
    }

    fn inode(&self, nid: u64) -> File {
        let at = self.meta + nid as usize * 32;
        let i = &self.bytes[at..at + 64];
        let format = le(&i[0..2]);
        assert_eq!(format & 1, 1, "extended inode");
        let layout = format >> 1 & 7;
        let icount = le(&i[2..4]) as usize;
        let xattr_size = if icount == 0 { 0 } else { 12 + 4 * (icount - 1) };
        let (mode, size, addr) = (le(&i[4..6]) as u16, le(&i[8..16]) as usize, le(&i[16..20]) as usize);
        let tail_at = at + 64 + xattr_size;
        let has_data = matches!(mode & 0o170_000, 0o100_000 | 0o040_000 | 0o120_000);
        let data = match layout {
            _ if !has_data => Vec::new(),
            0 if size == 0 => Vec::new(),
            0 => self.bytes[addr * BLOCK..][..size].to_vec(),
            2 => {
                let tail = size % BLOCK;
                assert!(tail > 0 && tail_at % BLOCK + tail <= BLOCK, "the tail is within one block");
                let whole = if size > tail { &self.bytes[addr * BLOCK..][..size - tail] } else { &[] };
                [whole, &self.bytes[tail_at..][..tail]].concat()
            }
            other => panic!("layout {other}"),
        };
        File {
            nid,
            mode,
            uid: le(&i[24..28]) as u32,
            gid: le(&i[28..32]) as u32,
            mtime: (le(&i[32..40]) as i64, le(&i[40..44]) as u32),
            nlink: le(&i[44..48]) as u32,
            rdev: if has_data { 0 } else { addr as u32 },
            xattrs: xattrs(&self.bytes[at + 64..][..xattr_size]),
            data,
        }
    }
}

fn xattrs(area: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut at = 12;
    while at < area.len() {
        let (name_len, index, size) = (area[at] as usize, area[at + 1], le(&area[at + 2..at + 4]) as usize);
        let prefix: &[u8] = match index {
            1 => b"user.",
            2 => b"system.posix_acl_access",
            3 => b"system.posix_acl_default",
            4 => b"trusted.",
            6 => b"security.",
            other => panic!("attribute prefix {other}"),
        };
        let name = &area[at + 4..][..name_len];
        let value = &area[at + 4 + name_len..][..size];
        found.insert([prefix, name].concat(), value.to_vec());
        at = (at + 4 + name_len + size).next_multiple_of(4);
    }
    found
}

/// A directory's entries, checked to be in byte order over all blocks.
fn entries(data: &[u8]) -> Vec<(Vec<u8>, u64, u8)> {
    let mut all: Vec<(Vec<u8>, u64, u8)> = Vec::new();
    for block in data.chunks(BLOCK) {
        let count = le(&block[8..10]) as usize / 12;
        for i in 0..count {
            let entry = &block[12 * i..];
            let start = le(&entry[8..10]) as usize;
            let end = if i + 1 < count { le(&block[12 * (i + 1) + 8..][..2]) as usize } else { block.len() };
            let name = block[start..end].split(|b| *b == 0).next().expect("a part").to_vec();
            assert!(!name.is_empty());
            assert!(all.last().is_none_or(|last| last.0 < name), "order of names");
            all.push((name, le(&entry[0..8]), entry[10]));
        }
    }
    all
}
