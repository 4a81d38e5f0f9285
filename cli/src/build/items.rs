//! What COPY and ADD copy: files of the build context, or of an image. Names lead nowhere but below the top of either.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use guest_images::Contents;
use guest_images::layer::tar::{Entry as TarEntry, EntryKind as TarKind, TarReader, is_header};
use guest_images::tree::{Attrs, FileData, Kind, NodeId};

use super::context::Context;
use super::ignore::Pattern;

/// Most files that one instruction copies.
pub const MAX_ITEMS: usize = 4_000_000;
/// Deepest directory: a path has 4095 bytes.
const MAX_DEPTH: usize = 2048;

/// One of them, with all that is below it.
#[derive(Debug)]
pub struct Item {
    /// Its name in its directory.
    pub name: Box<[u8]>,
    /// Mode, owner, time, attributes.
    pub attrs: Attrs,
    /// What it is.
    pub what: What,
}

/// What an [`Item`] is.
#[derive(Debug)]
pub enum What {
    /// A directory.
    Directory(Vec<Item>),
    /// A regular file.
    File { size: u64, data: Data },
    /// A symbolic link, as it is.
    Symlink(Box<[u8]>),
    /// Another name of a file that the same archive has, by its path there.
    Hardlink(Vec<u8>),
    /// A character or block device, or a named pipe, of an image.
    Special(Kind),
}

/// Where a file's bytes are.
#[derive(Debug, Clone)]
pub enum Data {
    /// In a file of the context, by its path.
    Host(Rc<Context>, Vec<u8>),
    /// In an image.
    Image(Rc<Contents>, NodeId),
    /// Here.
    Bytes(Rc<[u8]>),
    /// In parts of a file without a name, each of which goes to a place of its own; zeros are between them.
    Parts(Arc<File>, Vec<Part>),
}

/// Where so many bytes are in the archive, and where they belong.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    from: u64,
    to: u64,
    len: u64,
}

impl Data {
    /// The bytes, from the first one on.
    pub fn open(&self, size: u64) -> anyhow::Result<Box<dyn Read + '_>> {
        Ok(match self {
            Data::Host(context, path) => Box::new(context.open_file(path, size)?),
            Data::Image(contents, id) => contents.read(*id),
            Data::Bytes(bytes) => Box::new(&bytes[..]),
            Data::Parts(file, parts) => Box::new(Spread { file, parts, at: 0, size }),
        })
    }
}

/// Reads [`Data::Parts`].
struct Spread<'a> {
    file: &'a File,
    parts: &'a [Part],
    at: u64,
    size: u64,
}

impl Read for Spread<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.parts.first().is_some_and(|part| part.to + part.len <= self.at) {
            self.parts = &self.parts[1..];
        }
        let part = self.parts.first();
        let end = part.map_or(self.size, |part| if part.to > self.at { part.to } else { part.to + part.len });
        let most = usize::try_from(end.saturating_sub(self.at)).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..most];
        let got = match part.filter(|part| part.to <= self.at) {
            Some(part) => self.file.read_at(buffer, part.from + (self.at - part.to))?,
            None => {
                buffer.fill(0);
                buffer.len()
            }
        };
        self.at += got as u64;
        Ok(got)
    }
}

/// Where items come from.
pub trait Source {
    /// The names in a directory, in order; none if it is no directory.
    fn names(&self, path: &[u8]) -> anyhow::Result<Vec<Vec<u8>>>;
    /// What is at a path, with all below it; a link at its end leads on. None: nothing is.
    fn item(&self, path: &[u8]) -> anyhow::Result<Option<Item>>;
    /// What this is called in messages.
    fn called(&self) -> String;
}

/// What a source of COPY or ADD means, in order.
pub fn find(source: &dyn Source, text: &str) -> anyhow::Result<Vec<Item>> {
    let names: Vec<&[u8]> =
        text.as_bytes().split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    if names.contains(&&b".."[..]) {
        bail!("'{text}' leads out of {}: only what is in it can be copied", source.called());
    }
    let mut paths: Vec<Vec<u8>> = vec![Vec::new()];
    for name in names {
        if !Pattern::is_wild(name) {
            paths.iter_mut().for_each(|path| extend(path, name));
            continue;
        }
        let pattern = Pattern::parse(name)?;
        let mut found = Vec::new();
        for path in paths {
            for name in source.names(&path)?.into_iter().filter(|name| pattern.matches(name)) {
                let mut path = path.clone();
                extend(&mut path, &name);
                found.push(path);
            }
        }
        paths = found;
    }
    let mut items = Vec::new();
    for path in paths {
        items.extend(source.item(&path)?);
    }
    if items.is_empty() {
        bail!("'{text}' is not in {}, or .dockerignore leaves it out", source.called());
    }
    Ok(items)
}

/// Adds a name to a path.
pub fn extend(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// The files of an image, or of a stage.
#[derive(Debug)]
pub struct OfImage(pub Rc<Contents>);

impl OfImage {
    fn below(&self, name: &[u8], id: NodeId, depth: usize) -> anyhow::Result<Item> {
        if depth > MAX_DEPTH {
            bail!("its directories are nested too deep");
        }
        let node = self.0.node(id);
        let what = match &node.kind {
            Kind::Dir { entries, .. } => {
                let items = entries.iter().map(|(name, id)| self.below(name, *id, depth + 1));
                What::Directory(items.collect::<anyhow::Result<_>>()?)
            }
            Kind::File(data) => What::File { size: size_of(data), data: Data::Image(self.0.clone(), id) },
            Kind::Symlink(target) => What::Symlink(target.clone()),
            other => What::Special(other.clone()),
        };
        Ok(Item { name: name.into(), attrs: node.attrs.clone(), what })
    }
}

fn size_of(data: &FileData) -> u64 {
    match data {
        FileData::Inline(bytes) => bytes.len() as u64,
        FileData::Blocks { size, .. } => *size,
    }
}

impl Source for OfImage {
    fn names(&self, path: &[u8]) -> anyhow::Result<Vec<Vec<u8>>> {
        let node = self.0.find(path)?.node;
        let entries = node.map(|id| &self.0.node(id).kind);
        Ok(match entries {
            Some(Kind::Dir { entries, .. }) => entries.keys().map(|name| name.to_vec()).collect(),
            _ => Vec::new(),
        })
    }

    fn item(&self, path: &[u8]) -> anyhow::Result<Option<Item>> {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let Some(id) = self.0.find(path)?.node else { return Ok(None) };
        self.below(name, id, 0).map(Some)
    }

    fn called(&self) -> String {
        "the image that is copied from".into()
    }
}

/// What is in an archive: paths, and what they are.
pub type Archived = Vec<(Vec<u8>, Item)>;

/// What is in a tar archive that ADD unpacks: a directory without a name. None: it is no archive. `spool` takes it uncompressed.
pub fn unpacked(file: impl Read + Send, mut spool: File, most: u64) -> anyhow::Result<Option<Archived>> {
    let broken = "the archive cannot be read";
    let mut plain = match guest_images::pipe::decompress(file) {
        Ok(plain) => plain.take(most),
        Err(_) => return Ok(None),
    };
    // Most files are none: their first block tells.
    let mut first = Vec::new();
    if plain.by_ref().take(512).read_to_end(&mut first).is_err() || !is_header(&first) {
        return Ok(None);
    }
    io::copy(&mut first.as_slice().chain(plain.by_ref()), &mut spool).context(broken)?;
    if plain.limit() == 0 {
        bail!("the archive has more than {most} bytes");
    }
    spool.seek(SeekFrom::Start(0)).context(broken)?;
    let spool = Arc::new(spool);
    let mut reader = TarReader::new(io::BufReader::new(&*spool));
    let mut items = Vec::new();
    while let Some(entry) = reader.next_entry().context(broken)? {
        reader.seek_past_data().context(broken)?;
        if items.len() >= MAX_ITEMS {
            bail!("the archive has more than {MAX_ITEMS} files");
        }
        items.push(archived(entry, &spool)?);
    }
    Ok(Some(items))
}

fn archived(entry: TarEntry, spool: &Arc<File>) -> anyhow::Result<(Vec<u8>, Item)> {
    let what = match entry.kind {
        TarKind::Dir => What::Directory(Vec::new()),
        TarKind::File => {
            let (mut from, mut parts) = (entry.position, Vec::new());
            for segment in &entry.segments {
                parts.push(Part { from, to: segment.offset, len: segment.len });
                from += segment.len;
            }
            What::File { size: entry.size, data: Data::Parts(spool.clone(), parts) }
        }
        TarKind::Symlink(target) => What::Symlink(target.into()),
        TarKind::HardLink(target) => What::Hardlink(target),
        TarKind::Char { major, minor } => What::Special(Kind::Char { major, minor }),
        TarKind::Block { major, minor } => What::Special(Kind::Block { major, minor }),
        TarKind::Fifo => What::Special(Kind::Fifo),
    };
    let leaves = |error| anyhow!("the archive has '{}': {error}", entry.path.escape_ascii());
    let names = guest_images::tree::components(&entry.path).map_err(leaves)?;
    let path = names.join(&b'/');
    let name = names.last().copied().unwrap_or_default().into();
    Ok((path, Item { name, attrs: entry.attrs, what }))
}
