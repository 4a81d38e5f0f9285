//! An interface without a device: a tap that is somebody's in a network namespace, and what is behind it, each the other's peer. For containers of
//! the host's own kernel, whose network is the same as that of a guest: by the same backends, and under the same rules.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::Value;
use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::backend::{Backend, HEADER, MOST, Packet};
use super::config::{Beyond, KIND, opened};
use super::egress::{Egress, HEAD};
use super::tap::Tap;
use super::{F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6};
use crate::virtio::DeviceError;
use crate::virtio::chain::Buffers;
use crate::virtio::limit::{Direction, Limiter, Limits};

/// What both sides leave to whoever reads a packet.
const OFFLOADS: u64 = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6;
/// Packets in one direction before the other has its turn.
const TURN: usize = 64;

/// What is behind an interface.
pub struct Link {
    beyond: Box<dyn Backend>,
    egress: Option<Egress>,
    limiter: Limiter,
    rates: Rates,
    packet: Box<[u8]>,
    /// There is nothing more to come from beyond.
    over: bool,
    /// The number of a program that has been started for it.
    helper: Option<u32>,
}

/// How much may pass an interface that works, for whoever is to change that.
#[derive(Debug, Clone)]
pub struct Rates(Arc<News>);

#[derive(Debug)]
struct News {
    limits: Mutex<Option<Limits>>,
    bell: EventFd,
}

impl Rates {
    fn new(limits: Limits) -> io::Result<Self> {
        let news = News { limits: Mutex::new(Some(limits)), bell: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)? };
        Ok(Rates(Arc::new(news)))
    }

    /// Sets the limits that an interface with this configuration has, and no others.
    ///
    /// # Errors
    /// They are none.
    pub fn set(&self, interface: &Value) -> Result<(), DeviceError> {
        *self.0.limits.lock().unwrap_or_else(PoisonError::into_inner) = Some(Limits::of(&KIND, interface)?);
        // A bell that cannot be rung has been rung very often.
        let _ = self.0.bell.write(1);
        Ok(())
    }

    /// What has been set since this was asked last.
    fn news(&self) -> Option<Limits> {
        let _ = self.0.bell.read();
        self.0.limits.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Link {
    /// Opens, makes or starts what is behind `interface`, one of a section of interfaces.
    ///
    /// # Errors
    /// It cannot be had, or there is nothing behind it.
    pub fn open(interface: &Value) -> Result<Self, DeviceError> {
        let limits = Limits::of(&KIND, interface)?;
        let rates = Rates::new(limits).map_err(DeviceError::host(KIND.config_key, "an eventfd".to_owned()))?;
        let Beyond { backend, egress, helper } = opened(interface)?;
        Ok(Link { helper, ..Link::to(backend, egress, rates) })
    }

    fn to(beyond: Box<dyn Backend>, egress: Option<Egress>, rates: Rates) -> Self {
        let packet = vec![0; MOST].into_boxed_slice();
        Link { beyond, egress, limiter: Limiter::default(), rates, packet, over: false, helper: None }
    }

    /// The number of a program that has been started for it, and is nobody's child. It ends when the link does.
    pub fn helper(&self) -> Option<u32> {
        self.helper
    }

    /// How much may pass, to be changed while it works.
    pub fn rates(&self) -> Rates {
        self.rates.clone()
    }

    /// Passes packets on between that and `tap`, a queue of a tap interface with virtio headers, until there is something to read from `stop`.
    ///
    /// # Errors
    /// The tap is none, or its namespace is gone.
    pub fn run(mut self, tap: OwnedFd, stop: BorrowedFd<'_>) -> io::Result<()> {
        let mut inside = Tap::taken(tap)?;
        inside.accept(OFFLOADS)?;
        self.beyond.accept(OFFLOADS)?;
        loop {
            if let Some(limits) = self.rates.news() {
                self.limiter.set(&limits);
            }
            // Whoever has waited for a limit asks anew, whatever it is that has ended the waiting.
            self.limiter.take_waiting();
            let turns = [self.outward(&mut inside)?, self.inward(&mut inside)];
            if self.wait(&inside, stop, turns)? {
                return Ok(());
            }
        }
    }

    /// Passes on what comes from the tap.
    fn outward(&mut self, inside: &mut Tap) -> io::Result<Turn> {
        for _ in 0..TURN {
            if !self.beyond.ready() {
                return Ok(Turn::Done);
            }
            if !self.limiter.admits(0, Direction::FromGuest) {
                return Ok(Turn::Waits);
            }
            let room = [VolatileSlice::from(&mut self.packet[..])];
            let Some(len) = inside.receive(0, &room)? else { return Ok(Turn::Done) };
            let packet = &mut self.packet[..len];
            if self.egress.as_ref().is_some_and(|egress| !egress.allows(&packet[..len.min(HEAD)], len)) {
                continue;
            }
            self.limiter.spend(Direction::FromGuest, len.saturating_sub(HEADER) as u64);
            // As on any network, what is not taken is lost.
            if let Err(error) = self.beyond.send(0, Packet { head: packet, rest: Buffers::default() }) {
                tracing::debug!(len, "net: packet dropped: {error}");
            }
        }
        Ok(Turn::More)
    }

    /// The same of what is beyond.
    fn inward(&mut self, inside: &mut Tap) -> Turn {
        for _ in 0..TURN {
            if self.over {
                return Turn::Done;
            }
            if !self.limiter.admits(1, Direction::ToGuest) {
                return Turn::Waits;
            }
            let room = [VolatileSlice::from(&mut self.packet[..])];
            match self.beyond.receive(0, &room) {
                Ok(Some(len)) if len > HEADER => {
                    let packet = &mut self.packet[..len];
                    if let Some(egress) = &mut self.egress {
                        egress.learn(packet);
                    }
                    self.limiter.spend(Direction::ToGuest, (len - HEADER) as u64);
                    if let Err(error) = inside.send(0, Packet { head: packet, rest: Buffers::default() }) {
                        tracing::debug!(len, "net: packet dropped: {error}");
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => return Turn::Done,
                Err(error) => {
                    tracing::warn!("net: nothing more is received: {error}");
                    self.over = true;
                }
            }
        }
        Turn::More
    }

    /// Waits until there is something to do. True: that is to stop.
    fn wait(&mut self, inside: &Tap, stop: BorrowedFd<'_>, [outward, inward]: [Turn; 2]) -> io::Result<bool> {
        let takes = self.beyond.ready();
        let when = |wanted: bool, flags: PollFlags| if wanted { flags } else { PollFlags::empty() };
        let inner = when(takes && outward != Turn::Waits, PollFlags::IN);
        let outer = when(inward != Turn::Waits, PollFlags::IN) | when(!takes, PollFlags::OUT);
        let bell = borrowed(self.rates.0.bell.as_raw_fd());
        let mut fds =
            vec![PollFd::from_borrowed_fd(stop, PollFlags::IN), PollFd::from_borrowed_fd(bell, PollFlags::IN)];
        // One that nothing is wanted of is not asked: that it is gone would end each waiting at once.
        let inside = Some(inside.as_fd()).filter(|_| !inner.is_empty());
        fds.extend(inside.map(|tap| PollFd::from_borrowed_fd(tap, inner)));
        let beyond = self.beyond.fds().first().copied().filter(|_| !self.over && !outer.is_empty()).map(borrowed);
        fds.extend(beyond.map(|fd| PollFd::from_borrowed_fd(fd, outer)));
        let at_once = outward == Turn::More || inward == Turn::More;
        let until = if at_once { Some(Duration::ZERO) } else { self.limiter.take_wake() };
        let until =
            until.map(|until| Timespec { tv_sec: until.as_secs() as i64, tv_nsec: until.subsec_nanos().into() });
        match poll(&mut fds, until.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(!fds[0].revents().is_empty()),
            Err(error) => Err(error.into()),
        }
    }
}

/// How one direction had its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// There may be more.
    More,
    /// There is nothing more, or no room where it goes to.
    Done,
    /// There may be more when a limit lets it pass.
    Waits,
}

fn borrowed<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: it is the backend's for its whole life ([`Backend::fds`]), and that outlives the poll which this is for.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use crate::virtio::net::Stream;
    use crate::virtio::net::egress::Rule;

    /// An Ethernet frame with a UDP packet to this address.
    fn frame(to: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0; 14 + 20 + 8 + 4];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14..38].copy_from_slice(&[
            0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 15, to[0], to[1], to[2], to[3], 0, 9, 0, 9,
        ]);
        frame[38..40].copy_from_slice(&[0, 12]);
        frame
    }

    /// A link at work between a tap in a namespace of this thread's own and a stream.
    struct Works {
        /// Seen from the namespace, the tap's other side is what a packet socket of that is.
        raw: OwnedFd,
        theirs: UnixStream,
        rates: Rates,
        stopper: Option<UnixStream>,
        thread: Option<thread::JoinHandle<(io::Result<()>, Duration)>>,
    }

    impl Works {
        fn with(name: &str, rules: Option<Vec<Rule>>, interface: &Value) -> Option<Self> {
            // SAFETY: it affects the network of this thread, which is the test's own.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                println!("SKIP {name}: {}", io::Error::last_os_error());
                return None;
            }
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (stop, stopper) = UnixStream::pair().unwrap();
            let mut tap = super::super::tap::NewTap::default().make(1, None).unwrap().into_descriptors();
            let rates = Rates::new(Limits::of(&KIND, interface).unwrap()).unwrap();
            let stream = Stream::new(ours).unwrap();
            let link = Link::to(Box::new(stream), rules.map(Egress::new), rates);
            let (tap, rates, raw) = (tap.remove(0), link.rates(), packet_socket());
            let run = move || (link.run(tap, stop.as_fd()), worked());
            let thread = Some(thread::spawn(run));
            Some(Works { raw, theirs, rates, stopper: Some(stopper), thread })
        }

        fn sends(&self, frame: &[u8]) {
            rustix::net::send(&self.raw, frame, rustix::net::SendFlags::empty()).unwrap();
        }

        /// What comes out, of frames of this length.
        fn comes_out(&mut self, length: usize) -> Vec<u8> {
            let mut got = vec![0; 4 + length];
            self.theirs.read_exact(&mut got).unwrap();
            got.split_off(4)
        }

        fn goes_in(&mut self, frame: &[u8]) {
            let mut back = (frame.len() as u32).to_be_bytes().to_vec();
            back.extend(frame);
            self.theirs.write_all(&back).unwrap();
        }

        /// Waits until this is what the namespace has got.
        fn comes_in(&self, frame: &[u8]) {
            let mut got = [0; 2048];
            while rustix::io::read(&self.raw, &mut got).unwrap() != frame.len() || got[..frame.len()] != *frame {}
        }
    }

    impl Works {
        /// Has it end, and tells for how long it has worked.
        fn end(mut self) -> Duration {
            drop(self.stopper.take());
            let (ended, worked) = self.thread.take().unwrap().join().unwrap();
            ended.unwrap();
            worked
        }
    }

    /// Processor time of this thread.
    fn worked() -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    #[test]
    fn nothing_is_done_when_who_is_beyond_has_ended() {
        let Some(works) = Works::with("nothing_is_done_when_who_is_beyond_has_ended", None, &Value::Null) else {
            return;
        };
        works.theirs.shutdown(std::net::Shutdown::Both).unwrap();
        (0..3).for_each(|_| works.sends(&frame([192, 0, 2, 1])));
        // Time in which to do something.
        thread::sleep(Duration::from_millis(200));
        let worked = works.end();
        assert!(worked < Duration::from_millis(100), "{worked:?}");
    }

    #[test]
    fn packets_pass_both_ways_and_only_where_they_may() {
        let rules = vec!["192.0.2.1".to_owned().try_into().unwrap()];
        let name = "packets_pass_both_ways_and_only_where_they_may";
        let Some(mut works) = Works::with(name, Some(rules), &Value::Null) else { return };
        works.sends(&frame([192, 0, 2, 2]));
        works.sends(&frame([192, 0, 2, 1]));
        let frame_length = frame([0; 4]).len();
        assert_eq!(works.comes_out(frame_length), frame([192, 0, 2, 1]), "the other one is not let out");
        works.goes_in(&frame([10, 9, 8, 7]));
        works.comes_in(&frame([10, 9, 8, 7]));
        works.end();
    }

    #[test]
    fn each_direction_waits_for_its_own_limit_until_that_is_lifted() {
        // One packet at once, and the next in a day.
        let bucket = json!({ "ops": { "size": 1, "refill_time": 86_400_000 } });
        let both = json!({ "tx_rate_limiter": bucket, "rx_rate_limiter": bucket });
        let name = "each_direction_waits_for_its_own_limit_until_that_is_lifted";
        let Some(mut works) = Works::with(name, None, &both) else { return };
        let frames = [1, 2, 3].map(|last| frame([192, 0, 2, last]));
        frames.iter().for_each(|frame| works.sends(frame));
        frames.iter().for_each(|frame| works.goes_in(frame));
        assert_eq!(works.comes_out(frames[0].len()), frames[0]);
        works.comes_in(&frames[0]);
        works.theirs.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let error = works.theirs.read(&mut [0; 64]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "a second packet");
        works.theirs.set_read_timeout(None).unwrap();
        // That of the other direction stays.
        works.rates.set(&json!({ "rx_rate_limiter": bucket })).unwrap();
        for frame in &frames[1..] {
            assert_eq!(works.comes_out(frame.len()), *frame);
        }
        works.rates.set(&json!({})).unwrap();
        frames[1..].iter().for_each(|frame| works.comes_in(frame));
        assert!(works.rates.set(&json!({ "tx_rate_limiter": 1 })).is_err());
        works.end();
    }

    /// One that sees all of the only interface but the loopback's, and sends by it.
    fn packet_socket() -> OwnedFd {
        use std::os::fd::FromRawFd;
        // SAFETY: it makes a socket, of which the descriptor is then nobody else's; and reads a sockaddr_ll.
        unsafe {
            let all = (libc::ETH_P_ALL as u16).to_be();
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(all));
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            let fd = OwnedFd::from_raw_fd(fd);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = all;
            address.sll_ifindex = libc::if_nametoindex(c"bulkhead0".as_ptr()) as i32;
            let length = size_of::<libc::sockaddr_ll>() as u32;
            let raw = std::os::fd::AsRawFd::as_raw_fd(&fd);
            assert_eq!(libc::bind(raw, (&raw const address).cast(), length), 0, "{}", io::Error::last_os_error());
            fd
        }
    }
}
