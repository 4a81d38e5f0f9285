//! Flow control of a stream, both ways (virtio 1.3, 5.10.6.3). All counters wrap.
//!
//! What the guest may send ahead is bounded by what may wait for the host. All connections share that ([`share`]): one alone has
//! much, and so keeps many packets on their way; of hundreds each has a little, and none takes another's. What was granted once stays
//! granted, as with TCP's window: its end never moves back, so a share that has become smaller counts as the data moves on.

use std::time::{Duration, Instant};

use super::connection::Violation;
use super::packet::Header;

/// Bytes that may wait for the host in all, but for what was granted while there were fewer connections.
const ALL: u32 = 16 << 20;
/// Most bytes of one connection: as many packets of 64 KiB as keep the guest busy until it hears of room. A share of more would hold
/// Linux up for ever: it hears of room when it has used up half, and has no more on its way than its own buffer holds, whatever it is
/// granted (256 KiB unless a program says otherwise).
pub const MOST: u32 = 256 << 10;

/// What each of so many connections may have waiting, bytes.
pub fn share(connections: usize) -> u32 {
    // They are bounded far below 32 bits.
    MOST.min(ALL / (connections.max(1) as u32))
}

/// From the guest: what it has sent, and may send.
#[derive(Debug)]
pub struct FromGuest {
    /// Bytes taken from the guest, and passed to the host.
    received: u32,
    forwarded: u32,
    /// How many it may have sent at the most.
    end: u32,
    /// What may be waiting.
    share: u32,
}

impl FromGuest {
    /// For a connection that has this share now.
    pub fn new(share: u32) -> Self {
        FromGuest { received: 0, forwarded: 0, end: share, share }
    }

    /// The share from now on.
    pub fn set_share(&mut self, share: u32) {
        self.share = share;
    }

    /// Takes so many bytes, if the guest may send them.
    pub fn take(&mut self, len: usize) -> Result<(), Violation> {
        let len = u32::try_from(len).ok().filter(|len| *len <= self.left()).ok_or(Violation)?;
        self.received = self.received.wrapping_add(len);
        Ok(())
    }

    /// Bytes that the guest believes to have room for.
    fn left(&self) -> u32 {
        self.end.wrapping_sub(self.received)
    }

    /// So many were passed on.
    pub fn pass(&mut self, len: usize) {
        self.forwarded = self.forwarded.wrapping_add(len as u32);
    }

    /// All were, or nobody wants them.
    pub fn pass_all(&mut self) {
        self.forwarded = self.received;
    }

    /// The end that there would be now, if it is behind the one there is.
    fn next_end(&self) -> Option<u32> {
        let end = self.forwarded.wrapping_add(self.share);
        (end.wrapping_sub(self.end) as i32 > 0).then_some(end)
    }

    /// There is more room than the guest knows of, and it believes in less than half of it.
    pub fn is_news(&self) -> bool {
        self.next_end().is_some() && self.left() < self.share / 2
    }

    /// Tells all there is to know, in a packet.
    pub fn tell(&mut self, header: &mut Header) {
        self.end = self.next_end().unwrap_or(self.end);
        header.buf_alloc = self.end.wrapping_sub(self.forwarded);
        header.fwd_cnt = self.forwarded;
    }
}

/// To the guest: what it was sent, and has room for.
///
/// Where it has no more, it is asked once: its answer is often news. If that tells of next to none, its reader is slow, and asking
/// on and on would keep both sides busy; then it is for the guest to say when there is room. Linux does, at the latest when its
/// reader has taken all. A guest may as well say nothing unless it is asked; and so it is asked after a while, each time
/// after twice as long, as TCP does.
#[derive(Debug, Default)]
pub struct ToGuest {
    /// Bytes sent.
    sent: u32,
    /// What the guest said of its buffer.
    room: u32,
    forwarded: u32,
    question: Question,
    /// How long the last answer without room was good for; zero if there was room since.
    pause: Duration,
}

/// A question for room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Question {
    /// None since there was room.
    #[default]
    None,
    Asked,
    /// There is next to no room; asked again at that time.
    Answered(Instant),
}

/// The shortest and the longest time until a guest is asked again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(32));

impl ToGuest {
    /// Every packet of the guest tells its credit.
    pub fn hear(&mut self, header: &Header) {
        self.room = header.buf_alloc;
        self.forwarded = header.fwd_cnt;
        // Less than a quarter would only have small packets and questions take turns.
        if self.left() > self.room / 4 {
            (self.question, self.pause) = (Question::None, Duration::ZERO);
        } else if self.question == Question::Asked {
            self.pause = (self.pause * 2).clamp(PAUSES.0, PAUSES.1);
            self.question = Question::Answered(Instant::now() + self.pause);
        }
    }

    /// Bytes the guest has room for; none if its numbers make no sense.
    pub fn left(&self) -> u32 {
        self.room.saturating_sub(self.sent.wrapping_sub(self.forwarded))
    }

    /// So many were sent.
    pub fn spend(&mut self, len: usize) {
        self.sent = self.sent.wrapping_add(len as u32);
    }

    /// It has to be asked.
    pub fn is_unasked(&self) -> bool {
        self.question == Question::None
    }

    /// It is asked.
    pub fn ask(&mut self) {
        self.question = Question::Asked;
    }

    /// When it has to be asked again, if it says nothing before.
    pub fn asks_again(&self) -> Option<Instant> {
        match self.question {
            Question::Answered(at) => Some(at),
            Question::None | Question::Asked => None,
        }
    }

    /// Now it has to be.
    pub fn ask_again(&mut self) {
        self.question = Question::None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(credit: &mut FromGuest) -> (u32, u32) {
        let mut header = Header::default();
        credit.tell(&mut header);
        (header.buf_alloc, header.fwd_cnt)
    }

    #[test]
    fn shares_are_fair_and_bounded() {
        assert_eq!((share(0), share(1), share(16)), (MOST, MOST, MOST));
        assert_eq!((share(64), share(1024)), (256 << 10, 16 << 10));
        // The worst: each fills its share before the next comes, and nobody reads.
        let all: u64 = (1..=1024).map(|connections| u64::from(share(connections))).sum();
        assert!(all < 96 << 20, "{all}");
    }

    #[test]
    fn what_was_granted_stays_and_the_share_counts_as_data_moves_on() {
        let mut credit = FromGuest::new(1000);
        assert_eq!(told(&mut credit), (1000, 0));
        credit.take(900).unwrap();
        credit.set_share(100);
        assert_eq!(told(&mut credit), (1000, 0), "the end does not move back");
        credit.take(101).unwrap_err();
        credit.take(100).unwrap();
        assert!(!credit.is_news());
        credit.pass(900);
        assert!(!credit.is_news() && told(&mut credit) == (100, 900), "as much as its share waits");
        credit.pass(60);
        assert!(credit.is_news());
        assert_eq!(told(&mut credit), (100, 960));
        credit.take(61).unwrap_err();
        credit.take(60).unwrap();
        credit.pass_all();
        assert!(credit.is_news() && told(&mut credit) == (100, 1060));
        credit.set_share(5000);
        credit.take(60).unwrap();
        assert!(credit.is_news() && told(&mut credit) == (5000, 1060));
    }

    #[test]
    fn a_sender_that_keeps_to_a_buffer_of_256_kib_hears_of_room_before_it_stops() {
        let mut credit = FromGuest::new(share(1));
        credit.take((256 << 10) - 1).unwrap();
        credit.pass_all();
        assert!(credit.is_news());
    }

    #[test]
    fn counters_wrap() {
        let mut credit = FromGuest::new(1 << 20);
        for _ in 0..10_000 {
            credit.take(1 << 20).unwrap();
            credit.take(1).unwrap_err();
            credit.pass_all();
            assert!(credit.is_news());
            assert_eq!(told(&mut credit).0, 1 << 20);
            assert!(!credit.is_news());
        }
    }

    #[test]
    fn a_guest_without_room_is_asked_once_and_again_after_longer_and_longer() {
        let mut credit = ToGuest::default();
        let said =
            |credit: &mut ToGuest, fwd_cnt| credit.hear(&Header { buf_alloc: 1000, fwd_cnt, ..Header::default() });
        said(&mut credit, 0);
        credit.spend(1000);
        let mut before = Duration::ZERO;
        for round in 0..12 {
            assert!(credit.is_unasked());
            credit.ask();
            assert!(credit.asks_again().is_none(), "it has said nothing yet");
            // Next to none is none.
            said(&mut credit, round * 20);
            assert!(!credit.is_unasked());
            assert!(credit.pause > before || credit.pause == PAUSES.1);
            before = credit.pause;
            let at = credit.asks_again().unwrap();
            said(&mut credit, round * 20 + 1);
            assert_eq!(credit.asks_again(), Some(at), "it was told once when that is");
            credit.ask_again();
        }
        assert_eq!(before, PAUSES.1);
        credit.ask();
        said(&mut credit, 251);
        assert!(credit.is_unasked() && credit.asks_again().is_none() && credit.pause == Duration::ZERO);
        // What makes no sense is no room.
        credit.ask();
        said(&mut credit, 5000);
        assert!(credit.left() == 0 && !credit.is_unasked());
    }
}
