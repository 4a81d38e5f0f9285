//! Moving data, to files and through a network, and timing that: what `bench compare` has done in whatever it compares.
//!
//! The program is `bulkhead bench move` with an [`Order`]. Bulkhead is static, so it runs in any image. What it was told to do it does in
//! the same steps everywhere, by its own clock: a line from inside, by which the harness times other things, takes longer than
//! most of these steps. [`Peer`] is the other end of the network.
//!
//! Each thing is done twice, and the first time does not count: a file is written anew at the same place, and nothing is measured of how a
//! file system finds room. What is read was just written, and comes from the cache that the instance has. One sample of each is all that an
//! instance gives, since what comes next to it in time is like it, and many such would look surer than they are.

mod peer;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use peer::Peer;

/// Bytes that are given to the kernel at a time.
const BLOCK: usize = 64 << 10;
/// Bytes that are made durable one by one.
const LITTLE: usize = 4 << 10;
/// How long a connection may take to be there, or to go on.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the one in the instance asks of its peer: a byte, and what comes of it.
const ECHO: u8 = b'e';
const TAKE: u8 = b't';
const GIVE: u8 = b'g';

/// What to move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Directories, by what their rows begin with (`disk`, `volume`).
    pub files: Vec<(String, PathBuf)>,
    /// What the file in each is called.
    pub name: String,
    /// The peer, and the number by which it knows its own.
    pub peer: Option<(SocketAddr, u64)>,
    /// Bytes of a sample of a file's speed.
    pub bytes: u64,
    /// The same of the network's.
    pub net_bytes: u64,
}

/// Does it. `say` is given a line for each kind, as [`parse`] reads it.
pub fn carry_out(order: &Order, say: &mut dyn FnMut(&str)) {
    let mut block = vec![0; BLOCK];
    // No file system and no disk makes less of it.
    fastrand::Rng::with_seed(1).fill(&mut block);
    for (what, dir) in &order.files {
        if let Err(error) = order.file(what, dir, &block, say) {
            say(&format!("failed {what}: {error}"));
        }
    }
    if let Some((address, number)) = order.peer
        && let Err(error) = order.network(address, number, &mut block, say)
    {
        say(&format!("failed net: {error}"));
    }
}

/// A line of [`carry_out`]: the row with its sample, or what failed.
///
/// # Errors
/// It is none.
pub fn parse(line: &str) -> Result<(&str, f64), String> {
    if let Some(what) = line.strip_prefix("failed ") {
        return Err(what.to_owned());
    }
    let other = || format!("it says what no program of ours does: {line:?}");
    let (row, sample) = line.split_once(' ').ok_or_else(other)?;
    let sample = sample.parse().ok().filter(|value: &f64| value.is_finite() && *value > 0.0);
    Ok((row, sample.ok_or_else(other)?))
}

impl Order {
    fn file(&self, what: &str, dir: &Path, block: &[u8], say: &mut dyn FnMut(&str)) -> io::Result<()> {
        let path = dir.join(&self.name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        let moved = self.file_moves(what, &file, block, say);
        drop(file);
        fs::remove_file(&path)?;
        moved
    }

    fn file_moves(&self, what: &str, file: &File, block: &[u8], say: &mut dyn FnMut(&str)) -> io::Result<()> {
        let written = twice(|| {
            let began = Instant::now();
            pieces(self.bytes, block.len(), |at, count| file.write_all_at(&block[..count], at))?;
            file.sync_data()?;
            Ok(speed(self.bytes, began))
        })?;
        say(&line(what, "write", written));
        let mut buffer = vec![0; block.len()];
        let read = twice(|| {
            let began = Instant::now();
            pieces(self.bytes, block.len(), |at, count| file.read_exact_at(&mut buffer[..count], at))?;
            Ok(speed(self.bytes, began))
        })?;
        say(&line(what, "read", read));
        let synced = twice(|| {
            let began = Instant::now();
            file.write_all_at(&block[..LITTLE], 0)?;
            file.sync_data()?;
            Ok(milliseconds(began))
        })?;
        say(&line(what, "sync", synced));
        Ok(())
    }

    fn network(&self, address: SocketAddr, number: u64, block: &mut [u8], say: &mut dyn FnMut(&str)) -> io::Result<()> {
        let mut peer = TcpStream::connect_timeout(&address, PATIENCE / 6)?;
        prepare(&peer)?;
        peer.write_all(&hello(number, self.net_bytes))?;
        let trip = twice(|| {
            let began = Instant::now();
            peer.write_all(&[ECHO])?;
            peer.read_exact(&mut [0])?;
            Ok(milliseconds(began))
        })?;
        say(&line("net", "trip", trip));
        let out = twice(|| {
            let began = Instant::now();
            peer.write_all(&[TAKE])?;
            pieces(self.net_bytes, block.len(), |_, count| peer.write_all(&block[..count]))?;
            peer.read_exact(&mut [0])?;
            Ok(speed(self.net_bytes, began))
        })?;
        say(&line("net", "out", out));
        let back = twice(|| {
            let began = Instant::now();
            peer.write_all(&[GIVE])?;
            pieces(self.net_bytes, block.len(), |_, count| peer.read_exact(&mut block[..count]))?;
            Ok(speed(self.net_bytes, began))
        })?;
        say(&line("net", "in", back));
        Ok(())
    }
}

/// The second time of it: the first one warms up.
fn twice(mut once: impl FnMut() -> io::Result<f64>) -> io::Result<f64> {
    once()?;
    once()
}

/// MiB a second.
fn speed(bytes: u64, since: Instant) -> f64 {
    bytes as f64 / f64::from(1 << 20) / since.elapsed().as_secs_f64()
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn line(what: &str, kind: &str, sample: f64) -> String {
    format!("{what}-{kind} {sample:.6}")
}

/// Bytes in pieces of at most `most`: where each is, and how long.
fn pieces(bytes: u64, most: usize, mut piece: impl FnMut(u64, usize) -> io::Result<()>) -> io::Result<()> {
    let mut at = 0;
    while at < bytes {
        let count = most.min(usize::try_from(bytes - at).unwrap_or(most));
        piece(at, count)?;
        at += count as u64;
    }
    Ok(())
}

/// What a connection begins with.
fn hello(number: u64, bytes: u64) -> [u8; 16] {
    let mut hello = [0; 16];
    hello[..8].copy_from_slice(&number.to_le_bytes());
    hello[8..].copy_from_slice(&bytes.to_le_bytes());
    hello
}

/// Small pieces are sent at once, and nobody is waited for without end.
fn prepare(connection: &TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(files: &[(&str, &Path)], peer: Option<&Peer>) -> Order {
        Order {
            files: files.iter().map(|(what, dir)| ((*what).to_owned(), dir.to_path_buf())).collect(),
            name: "one".into(),
            peer: peer.map(|peer| (peer.here(), peer.number())),
            bytes: 100_000,
            net_bytes: 200_000,
        }
    }

    fn said(order: &Order) -> Vec<String> {
        let mut lines = Vec::new();
        carry_out(order, &mut |line| lines.push(line.to_owned()));
        lines
    }

    #[test]
    fn files_and_network_have_their_rows_and_nothing_stays() {
        let (disk, volume) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let peer = Peer::listen().unwrap();
        let order = order(&[("disk", disk.path()), ("volume", volume.path())], Some(&peer));
        let lines = said(&order);
        let rows: Vec<_> = lines.iter().map(|line| parse(line).unwrap()).collect();
        let names: Vec<_> = rows.iter().map(|(row, _)| *row).collect();
        let of = ["disk-write", "disk-read", "disk-sync", "volume-write", "volume-read", "volume-sync"];
        assert_eq!(names, [&of[..], &["net-trip", "net-out", "net-in"]].concat());
        assert_eq!(fs::read_dir(disk.path()).unwrap().count() + fs::read_dir(volume.path()).unwrap().count(), 0);
        let again: Order = serde_json::from_str(&serde_json::to_string(&order).unwrap()).unwrap();
        assert_eq!(again, order);
    }

    #[test]
    fn what_cannot_be_done_is_said_and_the_rest_is() {
        let dir = tempfile::tempdir().unwrap();
        let peer = Peer::listen().unwrap();
        let mut order = order(&[("disk", Path::new("/nonexistent")), ("volume", dir.path())], Some(&peer));
        let stranger = order.peer.map(|(address, number)| (address, !number));
        order.peer = stranger;
        let lines = said(&order);
        assert!(parse(&lines[0]).unwrap_err().starts_with("disk: "), "{lines:?}");
        assert!(lines[1].starts_with("volume-write ") && lines[3].starts_with("volume-sync "), "{lines:?}");
        // Whoever has another number is turned away.
        assert!(parse(lines.last().unwrap()).unwrap_err().starts_with("net: "), "{lines:?}");
    }

    #[test]
    fn a_guests_word_is_not_taken_for_more_than_it_is() {
        for line in ["", "disk-write", "disk-write x", "disk-write -1", "disk-write NaN", "disk-write 1 2"] {
            assert!(parse(line).unwrap_err().contains("no program of ours"), "{line}");
        }
        assert_eq!(parse("disk-write 1.5"), Ok(("disk-write", 1.5)));
        assert_eq!(parse("failed net: no way"), Err("net: no way".into()));
    }
}
