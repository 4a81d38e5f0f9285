//! Reads tar streams: ustar, GNU (long names, sparse files, binary numbers) and PAX, entry by entry.
//!
//! The `tar` crate knows where the header's fields are. What surrounds them is done here, because extension headers of a
//! hostile archive (a "long name" of a gigabyte) must be bounded, sizes in PAX headers decide where the next entry is, and
//! binary attribute values must survive.

mod header;

pub use header::{Entry, EntryKind, TarError};

use super::pax::{Pax, PaxSparse, decimal};
use super::sparse::{self, MAX_SEGMENTS, Segment};
use crate::tree::Attrs;
use ::tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};
use header::{BLOCK, device, number, padding, signed, until_nul};
use std::io::{self, ErrorKind, Read, Seek};

/// Longest extension header (PAX records or long name), in bytes: 16 attributes of the largest size and then some.
const MAX_EXTENSION: u64 = 1 << 20;

/// A stream of tar entries. After an entry, its data is read with [`TarReader::read_data`]; what is left of it is skipped.
#[derive(Debug)]
pub struct TarReader<R> {
    input: R,
    position: u64,
    /// Data of the current entry not read yet, and its padding.
    left: u64,
    padding: u64,
    global: Pax,
}

/// Extension headers that came before an entry.
#[derive(Default)]
struct Extensions {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

/// Whether an archive begins with this: 512 bytes whose checksum is right, which may be of an extended header (PAX, GNU's long names), whose
/// data then follows in the next block.
pub fn is_header(block: &[u8]) -> bool {
    matches!(TarReader::new(block).read_header(), Ok(Some(_)))
}

impl<R: Read + Seek> TarReader<R> {
    /// As the next [`TarReader::next_entry`] would do, but without reading what is skipped.
    ///
    /// # Errors
    /// Seeking fails.
    pub fn seek_past_data(&mut self) -> Result<(), TarError> {
        let bytes = i64::try_from(self.left).map_err(|_| TarError::Truncated)?;
        self.input.seek_relative(bytes).map_err(TarError::Read)?;
        self.position += self.left;
        self.left = 0;
        Ok(())
    }
}

impl<R: Read> TarReader<R> {
    /// Reads from the start of an uncompressed archive.
    pub fn new(input: R) -> Self {
        TarReader { input, position: 0, left: 0, padding: 0, global: Pax::default() }
    }

    /// The next entry, or `None` at the archive's end.
    ///
    /// # Errors
    /// See [`TarError`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip(self.left + self.padding)?;
            (self.left, self.padding) = (0, 0);
            let at = self.position;
            let Some(header) = self.read_header()? else {
                return Ok(None);
            };
            let size = number(&header.as_old().size).ok_or(TarError::Field(at, "size"))?;
            let kind = header.entry_type();
            match kind {
                EntryType::XHeader => {
                    let data = self.extension(at, size)?;
                    extensions.pax.get_or_insert_with(|| self.global.clone()).parse(&data)?;
                }
                EntryType::XGlobalHeader => {
                    let data = self.extension(at, size)?;
                    self.global.parse(&data)?;
                }
                EntryType::GNULongName => extensions.long_name = Some(until_nul(&self.extension(at, size)?).to_vec()),
                EntryType::GNULongLink => extensions.long_link = Some(until_nul(&self.extension(at, size)?).to_vec()),
                _ => return self.entry(at, &header, size, extensions).map(Some),
            }
        }
    }

    /// Fills `buffer` with the current entry's next bytes.
    ///
    /// # Errors
    /// The entry has fewer bytes left, or reading fails.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<(), TarError> {
        self.left = self.left.checked_sub(buffer.len() as u64).ok_or(TarError::Truncated)?;
        self.read_exact(buffer)
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), TarError> {
        self.position += buffer.len() as u64;
        self.input.read_exact(buffer).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => TarError::Truncated,
            _ => TarError::Read(e),
        })
    }

    fn skip(&mut self, bytes: u64) -> Result<(), TarError> {
        let skipped = io::copy(&mut (&mut self.input).take(bytes), &mut io::sink()).map_err(TarError::Read)?;
        self.position += skipped;
        if skipped == bytes { Ok(()) } else { Err(TarError::Truncated) }
    }

    /// A header block; `None` at a block of zeros or at the stream's end (archives without end blocks are common).
    fn read_header(&mut self) -> Result<Option<Header>, TarError> {
        let at = self.position;
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut got = 0;
        while got < block.len() {
            match self.input.read(&mut block[got..]) {
                Ok(0) if got == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Truncated),
                Ok(n) => got += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(TarError::Read(e)),
            }
        }
        self.position += BLOCK;
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        // The checksum field itself counts as eight spaces.
        let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
        let own: u64 = block[148..156].iter().map(|b| u64::from(*b)).sum();
        if number(&header.as_old().cksum) != Some(sum - own + 8 * 0x20) {
            return Err(TarError::Checksum(at));
        }
        Ok(Some(header))
    }

    /// The data of an extension header.
    fn extension(&mut self, at: u64, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENSION {
            return Err(TarError::Extension(at));
        }
        let mut data = vec![0; size as usize];
        self.read_exact(&mut data)?;
        self.padding = padding(size);
        Ok(data)
    }

    fn entry(&mut self, at: u64, header: &Header, size: u64, ext: Extensions) -> Result<Entry, TarError> {
        let Extensions { pax, long_name, long_link } = ext;
        let pax = pax.unwrap_or_else(|| self.global.clone());
        let old = header.as_old();
        let stored = pax.size.unwrap_or(size);
        let path = pax.path.or(long_name).unwrap_or_else(|| header.path_bytes().into_owned());
        let path = pax.sparse.name.clone().unwrap_or(path);
        let link = || {
            let own = || header.link_name_bytes().map(|l| l.into_owned()).unwrap_or_default();
            pax.link.clone().or_else(|| long_link.clone()).unwrap_or_else(own)
        };
        let kind = match header.entry_type() {
            // Archives older than ustar mark a directory by its name.
            EntryType::Regular if path.ends_with(b"/") && header.as_ustar().is_none() => EntryKind::Dir,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => EntryKind::File,
            EntryType::Directory => EntryKind::Dir,
            EntryType::Symlink => EntryKind::Symlink(link()),
            EntryType::Link => EntryKind::HardLink(link()),
            EntryType::Char => device(at, header).map(|(major, minor)| EntryKind::Char { major, minor })?,
            EntryType::Block => device(at, header).map(|(major, minor)| EntryKind::Block { major, minor })?,
            EntryType::Fifo => EntryKind::Fifo,
            other => {
                return Err(TarError::Type(String::from_utf8_lossy(&path).into_owned(), char::from(other.as_byte())));
            }
        };
        let mtime = match pax.mtime {
            Some(time) => time,
            None => (signed(&old.mtime).ok_or(TarError::Field(at, "mtime"))?, 0),
        };
        let id = |pax: Option<u64>, field: &[u8], name| {
            let value = pax.or_else(|| number(field)).ok_or(TarError::Field(at, name))?;
            u32::try_from(value).map_err(|_| TarError::Field(at, name))
        };
        let attrs = Attrs {
            mode: (number(&old.mode).ok_or(TarError::Field(at, "mode"))? & 0o7777) as u16,
            uid: id(pax.uid, &old.uid, "uid")?,
            gid: id(pax.gid, &old.gid, "gid")?,
            mtime: mtime.0,
            mtime_nsec: mtime.1,
            xattrs: pax.xattrs.clone(),
        };
        // Only files have data: some archives give a hard link its target's size, which counts for nothing.
        self.left = if kind == EntryKind::File { stored } else { 0 };
        self.padding = padding(self.left);
        let (size, segments) = match kind {
            EntryKind::File => self.segments(header, &pax.sparse, stored)?,
            _ => (0, Vec::new()),
        };
        Ok(Entry { path, kind, attrs, size, segments, position: self.position })
    }

    /// The size of a file and which parts of it the archive has.
    fn segments(&mut self, header: &Header, pax: &PaxSparse, stored: u64) -> Result<(u64, Vec<Segment>), TarError> {
        let (size, segments) = match (header.as_gnu(), pax) {
            (Some(gnu), _) if header.entry_type() == EntryType::GNUSparse => {
                let size = number(&gnu.realsize).ok_or(TarError::Sparse)?;
                (size, self.gnu_segments(&gnu.sparse, gnu.is_extended())?)
            }
            (_, PaxSparse { major: Some(1), real_size: Some(size), .. }) => (*size, self.pax_segments()?),
            (_, PaxSparse { list: Some(list), real_size: Some(size), .. }) => (*size, sparse::parse_list(list)?),
            _ if header.entry_type() == EntryType::GNUSparse => return Err(TarError::Sparse),
            _ => {
                return Ok((stored, vec![Segment { offset: 0, len: stored }]));
            }
        };
        sparse::check(&segments, size, self.left)?;
        Ok((size, segments))
    }

    /// GNU's old sparse format: four segments in the header, 21 in each block that follows.
    fn gnu_segments(&mut self, first: &[GnuSparseHeader], mut more: bool) -> Result<Vec<Segment>, TarError> {
        fn push(list: &[GnuSparseHeader], segments: &mut Vec<Segment>) -> Result<(), TarError> {
            for item in list.iter().take_while(|item| !item.is_empty()) {
                let offset = number(&item.offset).ok_or(TarError::Sparse)?;
                let len = number(&item.numbytes).ok_or(TarError::Sparse)?;
                segments.push(Segment { offset, len });
            }
            if segments.len() > MAX_SEGMENTS { Err(TarError::Sparse) } else { Ok(()) }
        }
        let mut segments = Vec::new();
        let mut blocks = 0;
        push(first, &mut segments)?;
        while more {
            let mut block = GnuExtSparseHeader::new();
            self.read_exact(block.as_mut_bytes())?;
            push(&block.sparse, &mut segments)?;
            more = block.is_extended();
            blocks += 1;
            if blocks > MAX_SEGMENTS {
                return Err(TarError::Sparse);
            }
        }
        Ok(segments)
    }

    /// PAX sparse format 1.0: decimal lines at the start of the data, padded to a block: how many, then the pairs.
    fn pax_segments(&mut self) -> Result<Vec<Segment>, TarError> {
        let mut lines = Lines { block: [0; BLOCK as usize], at: BLOCK as usize };
        let count = lines.next(self)?;
        if count > MAX_SEGMENTS as u64 {
            return Err(TarError::Sparse);
        }
        let numbers = (0..2 * count).map(|_| lines.next(self)).collect::<Result<Vec<_>, _>>()?;
        sparse::pairs(&numbers)
    }
}

/// Decimal lines in the data of an entry, read block by block.
struct Lines {
    block: [u8; BLOCK as usize],
    at: usize,
}

impl Lines {
    fn next<R: Read>(&mut self, reader: &mut TarReader<R>) -> Result<u64, TarError> {
        let mut digits = Vec::new();
        loop {
            if self.at == self.block.len() {
                reader.read_data(&mut self.block)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => return decimal(&digits).ok_or(TarError::Sparse),
                _ if digits.len() < 20 => digits.push(byte),
                _ => return Err(TarError::Sparse),
            }
        }
    }
}
