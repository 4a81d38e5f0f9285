//! A layer's bytes on their way from the blob to the converter: one thread reads, hashes and decompresses, the caller's
//! thread consumes. Bounded in memory; the output is bounded by a limit, so a decompression bomb ends early.

use crate::digest::{Algorithm, Digest, HashingReader};
use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

const CHUNK: usize = 256 << 10;
/// Chunks in flight.
const DEPTH: usize = 8;
/// Largest window of a zstd stream, as a power of two (128 MiB): what bounds the decoder's memory.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How a blob is compressed, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// Tells by the magic numbers of RFC 1952 and RFC 8878 (zstd frames and skippable frames).
    pub fn detect(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }
}

/// Decompresses `input` as its first bytes say.
///
/// # Errors
/// Reading the first bytes fails, or the zstd decoder cannot be made.
pub fn decompress<'a, R: Read + Send + 'a>(input: R) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut input = BufReader::with_capacity(CHUNK, input);
    Ok(match Compression::detect(input.fill_buf()?) {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
    })
}

/// What went through a [`run`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Digest of the bytes as they were stored.
    pub stored: Digest,
    /// How many those were.
    pub stored_bytes: u64,
}

/// The consumer's end: decompressed bytes.
#[derive(Debug)]
pub struct Output {
    chunks: Receiver<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
    at: usize,
}

impl Read for Output {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            match self.chunks.recv() {
                Ok(Ok(chunk)) => (self.chunk, self.at) = (chunk, 0),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(0),
            }
        }
        let take = buffer.len().min(self.chunk.len() - self.at);
        buffer[..take].copy_from_slice(&self.chunk[self.at..][..take]);
        self.at += take;
        Ok(take)
    }
}

/// Decompresses `input` in a thread of its own while `consume` reads the result, at most `limit` bytes of it. `progress`
/// counts the bytes read from `input`. Gives what `consume` returned and, unless it stopped early or reading failed, what went
/// through.
pub fn run<R: Read + Send, T>(
    input: R,
    algorithm: Algorithm,
    limit: u64,
    progress: &AtomicU64,
    consume: impl FnOnce(Output) -> T,
) -> (T, Option<Passed>) {
    std::thread::scope(|scope| {
        let (sender, chunks) = sync_channel(DEPTH);
        let producer = scope.spawn(move || produce(input, algorithm, limit, progress, &sender));
        let result = consume(Output { chunks, chunk: Vec::new(), at: 0 });
        // The receiver is gone with `consume`, so the producer ends at its next chunk.
        (result, producer.join().ok().flatten())
    })
}

/// Counts what is read.
struct Counting<'a, R>(R, &'a AtomicU64);

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.0.read(buffer)?;
        self.1.fetch_add(got as u64, Ordering::Relaxed);
        Ok(got)
    }
}

fn produce<R: Read + Send>(
    input: R,
    algorithm: Algorithm,
    limit: u64,
    progress: &AtomicU64,
    out: &SyncSender<io::Result<Vec<u8>>>,
) -> Option<Passed> {
    let mut input = HashingReader::new(Counting(input, progress), algorithm);
    let mut left = limit;
    let mut pump = || -> io::Result<bool> {
        let mut plain = decompress(&mut input)?;
        loop {
            let mut chunk = vec![0; CHUNK];
            let got = fill(&mut plain, &mut chunk)?;
            if got == 0 {
                return Ok(true);
            }
            left = left.checked_sub(got as u64).ok_or_else(|| {
                io::Error::other(format!("it takes more than {limit} bytes when uncompressed, the limit"))
            })?;
            chunk.truncate(got);
            if out.send(Ok(chunk)).is_err() {
                return Ok(false);
            }
        }
    };
    match pump() {
        Ok(true) => {}
        Ok(false) => return None,
        // A closed channel means that nobody wants to know. The digest tells whether the blob itself is to blame.
        Err(error) => drop(out.send(Err(error))),
    }
    // What follows the compressed stream belongs to the blob as well.
    io::copy(&mut input, &mut io::sink()).ok()?;
    let (stored, stored_bytes) = input.finish();
    Some(Passed { stored, stored_bytes })
}

/// Reads until the buffer is full or the input ends.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match input.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}
