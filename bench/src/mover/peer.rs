//! The other end of the network: takes and gives bytes on the host, for one connection after the other.
//!
//! It listens on all of the host's addresses, since it is not known by which way instances come. A connection begins with a number that only
//! they were told; any other is closed.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{BLOCK, ECHO, GIVE, TAKE, hello, pieces, prepare};

/// Of TEST-NET-1 (RFC 5737): what is sent there goes the way of what leaves the host. Nothing is.
const ELSEWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);
/// How long a connection may take to say who it is: others wait meanwhile.
const GREETING: Duration = Duration::from_secs(2);
/// No sample has more bytes.
const MOST: u64 = 1 << 30;

/// It listens. Dropped, it does no more.
#[derive(Debug)]
pub struct Peer {
    port: u16,
    number: u64,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    /// Listens at a free port.
    ///
    /// # Errors
    /// The host gives none.
    pub fn listen() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let port = listener.local_addr()?.port();
        let (number, stop) = (fastrand::Rng::new().u64(..), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().spawn(move || serve(&listener, number, &stopped))?;
        Ok(Peer { port, number, stop, thread: Some(thread) })
    }

    /// The number by which it knows its own.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Where this host reaches it.
    #[must_use]
    pub fn here(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Where those reach it that have networks of their own: the host's address on the way out.
    ///
    /// # Errors
    /// There is no way out.
    pub fn address(&self) -> io::Result<SocketAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(ELSEWHERE)?;
        Ok((socket.local_addr()?.ip(), self.port).into())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // For it to find out. If that fails, it is left behind: it holds nothing but its port.
        if TcpStream::connect_timeout(&self.here(), GREETING).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, number: u64, stop: &AtomicBool) {
    for connection in listener.incoming() {
        let Ok(connection) = connection else { return };
        if stop.load(Ordering::SeqCst) {
            return;
        }
        // Whoever breaks off is told so by his own end.
        let _ = answer(connection, number);
    }
}

fn answer(mut connection: TcpStream, number: u64) -> io::Result<()> {
    prepare(&connection)?;
    connection.set_read_timeout(Some(GREETING))?;
    let (mut greeting, mut bytes) = ([0; 16], [0; 8]);
    connection.read_exact(&mut greeting)?;
    bytes.copy_from_slice(&greeting[8..]);
    let bytes = u64::from_le_bytes(bytes);
    if greeting != hello(number, bytes) || bytes > MOST {
        return Ok(());
    }
    prepare(&connection)?;
    let mut block = vec![1; BLOCK];
    let mut asked = [0];
    while connection.read(&mut asked)? == 1 {
        match asked[0] {
            ECHO => connection.write_all(&asked)?,
            TAKE => {
                pieces(bytes, BLOCK, |_, count| connection.read_exact(&mut block[..count]))?;
                connection.write_all(&asked)?;
            }
            GIVE => pieces(bytes, BLOCK, |_, count| connection.write_all(&block[..count]))?,
            _ => return Ok(()),
        }
    }
    Ok(())
}
