//! Writes tar entries byte by byte, so that a test can write any nonsense.

pub struct Tar(pub Vec<u8>);

/// One header; the fields are public for tests to spoil.
#[derive(Clone, Debug)]
pub struct Item {
    pub name: Vec<u8>,
    pub kind: u8,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u64,
    pub link: Vec<u8>,
    pub device: (u32, u32),
    pub size: Option<u64>,
    pub pax: Vec<(Vec<u8>, Vec<u8>)>,
    pub data: Vec<u8>,
}

pub fn item(kind: u8, name: impl AsRef<[u8]>) -> Item {
    Item {
        name: name.as_ref().to_vec(),
        kind,
        mode: if kind == b'5' { 0o755 } else { 0o644 },
        uid: 0,
        gid: 0,
        mtime: 1_700_000_000,
        link: Vec::new(),
        device: (0, 0),
        size: None,
        pax: Vec::new(),
        data: Vec::new(),
    }
}

pub fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Item {
    Item { data: data.as_ref().to_vec(), ..item(b'0', name) }
}

pub fn dir(name: impl AsRef<[u8]>) -> Item {
    item(b'5', name)
}

pub fn symlink(name: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Item {
    Item { link: to.as_ref().to_vec(), ..item(b'2', name) }
}

pub fn hard_link(name: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Item {
    Item { link: to.as_ref().to_vec(), ..item(b'1', name) }
}

impl Item {
    pub fn mode(mut self, mode: u32) -> Item {
        self.mode = mode;
        self
    }

    pub fn owner(mut self, uid: u32, gid: u32) -> Item {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub fn pax(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Item {
        self.pax.push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }
}

fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let text = format!("{value:0digits$o}");
    if text.len() <= digits {
        field[..digits].copy_from_slice(text.as_bytes());
    } else {
        field.fill(0);
        let start = field.len() - 8;
        field[start..].copy_from_slice(&value.to_be_bytes());
        field[0] |= 0x80;
    }
}

pub fn header(item: &Item) -> [u8; 512] {
    let mut h = [0u8; 512];
    let copy = |h: &mut [u8; 512], at: usize, max: usize, bytes: &[u8]| {
        let n = bytes.len().min(max);
        h[at..at + n].copy_from_slice(&bytes[..n]);
    };
    copy(&mut h, 0, 100, &item.name);
    octal(&mut h[100..108], u64::from(item.mode));
    octal(&mut h[108..116], u64::from(item.uid & 0o7777777));
    octal(&mut h[116..124], u64::from(item.gid & 0o7777777));
    octal(&mut h[124..136], item.size.unwrap_or(item.data.len() as u64));
    octal(&mut h[136..148], item.mtime);
    h[156] = item.kind;
    copy(&mut h, 157, 100, &item.link);
    h[257..265].copy_from_slice(b"ustar\x0000");
    octal(&mut h[329..337], u64::from(item.device.0));
    octal(&mut h[337..345], u64::from(item.device.1));
    seal(&mut h);
    h
}

/// Sets the checksum.
pub fn seal(h: &mut [u8; 512]) {
    h[148..156].fill(b' ');
    let sum: u32 = h.iter().map(|b| u32::from(*b)).sum();
    h[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len.to_string().len() + rest != len {
        len = len.to_string().len() + rest;
    }
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

impl Tar {
    pub fn new() -> Tar {
        Tar(Vec::new())
    }

    pub fn of(items: impl IntoIterator<Item = Item>) -> Vec<u8> {
        let mut tar = Tar::new();
        items.into_iter().for_each(|item| tar.push(item));
        tar.end()
    }

    pub fn block(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    pub fn push(&mut self, mut item: Item) {
        if item.name.len() > 100 {
            let name = std::mem::take(&mut item.name);
            item.pax.push((b"path".to_vec(), name));
        }
        if item.link.len() > 100 {
            let link = std::mem::take(&mut item.link);
            item.pax.push((b"linkpath".to_vec(), link));
        }
        for (id, key) in [(item.uid, "uid"), (item.gid, "gid")] {
            if id > 0o7777777 {
                item.pax.push((key.as_bytes().to_vec(), id.to_string().into_bytes()));
            }
        }
        if !item.pax.is_empty() {
            let records: Vec<u8> = item.pax.iter().flat_map(|(k, v)| record(k, v)).collect();
            let mut pax = self::item(b'x', "pax");
            pax.data = records;
            self.block(&header(&pax));
            self.block(&pax.data);
        }
        self.block(&header(&item));
        self.block(&item.data);
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}
