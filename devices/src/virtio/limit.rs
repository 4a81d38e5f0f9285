//! Limits of what a device does for its driver: operations and bytes in a time, in each direction and in all.
//!
//! A limit is a bucket of tokens, with Firecracker's members. A request is taken up while there is a token left, and may take
//! more than there are: what comes after it waits until that is made up for. So a request larger than its bucket is no special
//! case, and the rate is kept in the long run. Who waits, waits in its own queue, for a timer of its transport's.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::table::{DeviceError, DeviceKind};

/// Nobody is woken more often because of a limit, if its bucket is not full again sooner.
const REST: Duration = Duration::from_millis(1);

/// A bucket. Without room, or if it is filled in no time, it is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// Tokens that it has room for: operations, or bytes.
    pub size: u64,
    /// Tokens that it has in the beginning besides, once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds until it is full again.
    pub refill_time: u64,
}

/// Limits of bytes and operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// Bytes of data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Requests or packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// Which way data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Writes, packets that the guest sends.
    FromGuest,
    /// Reads, packets that it receives.
    ToGuest,
}

/// What a limiter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Both directions together.
    All,
    /// One of them.
    Only(Direction),
}

/// Limits of a device. A request keeps those of all and those of its direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits([RateLimiter; 3]);

impl Scope {
    fn index(self) -> usize {
        match self {
            Scope::All => 0,
            Scope::Only(Direction::FromGuest) => 1,
            Scope::Only(Direction::ToGuest) => 2,
        }
    }
}

impl Limits {
    /// Those in the configuration of one device of a kind, [`DeviceKind::limiters`].
    pub fn of(kind: &DeviceKind, device: &Value) -> Result<Limits, DeviceError> {
        let mut limits = Limits::default();
        for (key, scope) in kind.limiters {
            if let Some(limiter) = device.get(key).filter(|limiter| !limiter.is_null()) {
                let limiter = serde_json::from_value(limiter.clone());
                limits = limits.with(*scope, limiter.map_err(DeviceError::section(kind.config_key))?);
            }
        }
        Ok(limits)
    }

    /// With a limiter for a scope.
    pub fn with(mut self, scope: Scope, limiter: RateLimiter) -> Self {
        self.0[scope.index()] = limiter;
        self
    }
}

/// A bucket with what is in it. Time is in ns since any moment.
#[derive(Debug, Clone)]
struct Level {
    config: TokenBucket,
    /// Of the tokens that come once.
    burst: u64,
    /// Tokens, each as many units as it takes ns to fill the bucket: then each ns brings as many units as the bucket has room for
    /// tokens, and nothing is ever rounded. Below 0 if more were taken than there were.
    units: i128,
    /// When that was so.
    at: u64,
}

impl Level {
    /// A full one; none if it is no limit.
    fn full(config: TokenBucket, now: u64) -> Option<Self> {
        (config.size > 0 && config.refill_time > 0).then(|| {
            let mut level = Level { config, burst: config.one_time_burst.unwrap_or(0), units: 0, at: now };
            level.units = level.room();
            level
        })
    }

    fn refill_ns(&self) -> u64 {
        self.config.refill_time.saturating_mul(1_000_000)
    }

    fn room(&self) -> i128 {
        i128::from(self.config.size).saturating_mul(self.refill_ns().into())
    }

    fn fill(&mut self, now: u64) {
        let came = i128::from(now.saturating_sub(self.at)).saturating_mul(self.config.size.into());
        self.units = self.units.saturating_add(came).min(self.room());
        self.at = now;
    }

    /// Takes tokens, there or not.
    fn take(&mut self, tokens: u64) {
        let once = tokens.min(self.burst);
        self.burst -= once;
        let cost = i128::from(tokens - once).saturating_mul(self.refill_ns().into());
        self.units = self.units.saturating_sub(cost);
    }

    /// For how long whoever wants tokens is to wait, ns.
    fn wait(&mut self, now: u64) -> u64 {
        self.fill(now);
        // A whole token is needed, of which there may be part by now.
        let missing = i128::from(self.refill_ns()).saturating_sub(self.units);
        if self.burst > 0 || missing <= 0 {
            return 0;
        }
        let until = (missing / i128::from(self.config.size)).saturating_add(1);
        let rest = (REST.as_nanos() as u64).min(self.refill_ns() / 2);
        u64::try_from(until).unwrap_or(u64::MAX).max(rest)
    }
}

/// The limits of a device as it works, and which of its queues wait because of them.
pub struct Limiter {
    epoch: Instant,
    limits: Limits,
    /// By scope: bytes, operations.
    levels: [[Option<Level>; 2]; 3],
    limited: bool,
    /// One bit a queue.
    waiting: u64,
    /// When the first of them can go on.
    wake: Option<u64>,
    /// The time that a timer has been set to.
    told: Option<u64>,
}

impl Default for Limiter {
    /// No limits.
    fn default() -> Self {
        Limiter {
            epoch: Instant::now(),
            limits: Limits::default(),
            levels: Default::default(),
            limited: false,
            waiting: 0,
            wake: None,
            told: None,
        }
    }
}

impl Limiter {
    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// Sets limits. What is in the buckets of those that stay as they are, stays.
    pub fn set(&mut self, limits: &Limits) {
        let now = self.now();
        for ((levels, old), new) in self.levels.iter_mut().zip(&self.limits.0).zip(&limits.0) {
            let [bytes, ops] = levels;
            let pairs = [(bytes, old.bandwidth, new.bandwidth), (ops, old.ops, new.ops)];
            for (level, old, new) in pairs {
                if old != new {
                    *level = new.and_then(|config| Level::full(config, now));
                }
            }
        }
        self.limits = *limits;
        self.limited = self.levels.iter().flatten().any(Option::is_some);
    }

    /// There are limits.
    pub fn is_limited(&self) -> bool {
        self.limited
    }

    /// Whether `queue` may take a request up now; if not, it is worked on again when it may.
    pub fn admits(&mut self, queue: usize, direction: Direction) -> bool {
        !self.limited || self.admits_at(self.now(), queue, direction)
    }

    fn admits_at(&mut self, now: u64, queue: usize, direction: Direction) -> bool {
        let levels = self.levels_of(direction);
        let wait = levels.map(|level| level.wait(now)).max().unwrap_or(0);
        if wait > 0 {
            let then = now.saturating_add(wait);
            self.waiting |= 1 << queue;
            self.wake = Some(self.wake.map_or(then, |wake| wake.min(then)));
        }
        wait == 0
    }

    /// A request has been taken up, with so many bytes of data.
    pub fn spend(&mut self, direction: Direction, bytes: u64) {
        if self.limited {
            for [level, ops] in self.pairs_of(direction) {
                level.iter_mut().for_each(|level| level.take(bytes));
                ops.iter_mut().for_each(|level| level.take(1));
            }
        }
    }

    fn pairs_of(&mut self, direction: Direction) -> impl Iterator<Item = &mut [Option<Level>; 2]> {
        let [all, from_guest, to_guest] = &mut self.levels;
        let one = if direction == Direction::FromGuest { from_guest } else { to_guest };
        [all, one].into_iter()
    }

    fn levels_of(&mut self, direction: Direction) -> impl Iterator<Item = &mut Level> {
        self.pairs_of(direction).flatten().flatten()
    }

    /// How long until the first queue that waits can go on, if that is sooner than a timer has been set to.
    pub fn take_wake(&mut self) -> Option<Duration> {
        let wake = self.wake.filter(|wake| self.told.is_none_or(|told| *wake < told))?;
        self.told = Some(wake);
        Some(Duration::from_nanos(wake.saturating_sub(self.now()).max(1)))
    }

    /// The queues that wait, one bit each. They wait no more.
    pub fn take_waiting(&mut self) -> u64 {
        (self.wake, self.told) = (None, None);
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn bucket(size: u64, refill_time: u64) -> TokenBucket {
        TokenBucket { size, one_time_burst: None, refill_time }
    }

    fn limiter(scope: Scope, bandwidth: Option<TokenBucket>, ops: Option<TokenBucket>) -> Limiter {
        let mut limiter = Limiter::default();
        limiter.set(&Limits::default().with(scope, RateLimiter { bandwidth, ops }));
        for level in limiter.levels.iter_mut().flatten().flatten() {
            level.at = 0;
        }
        limiter
    }

    /// Requests that begin in a time, each of `bytes`, if there is always one waiting.
    fn begun(limiter: &mut Limiter, (from, to): (u64, u64), bytes: u64) -> u64 {
        let (mut now, mut begun) = (from, 0);
        loop {
            while limiter.admits_at(now, 0, Direction::ToGuest) {
                limiter.spend(Direction::ToGuest, bytes);
                begun += 1;
                assert!(begun < 1_000_000, "there is no limit");
            }
            now = limiter.wake.take().unwrap();
            if now >= to {
                return begun;
            }
        }
    }

    #[test]
    fn the_rate_is_kept_whatever_the_size_of_a_request() {
        // 100 at first, and 1000 a second.
        let ops = || limiter(Scope::All, None, Some(bucket(100, 100)));
        assert_eq!(begun(&mut ops(), (0, MS / 2), 0), 100);
        let second = begun(&mut ops(), (0, 1000 * MS), 0);
        assert!((1098..=1101).contains(&second), "{second}");
        // 1 MB a second: of requests that are small, as large as the bucket, and ten times as large.
        for bytes in [1000, 100_000, 1_000_000] {
            let mut limiter = limiter(Scope::All, Some(bucket(100_000, 100)), None);
            let moved = begun(&mut limiter, (0, 10_000 * MS), bytes) * bytes;
            assert!((10_090_000..=10_100_000 + 2 * bytes).contains(&moved), "{bytes}: {moved}");
        }
    }

    #[test]
    fn rounding_adds_nothing_up() {
        // 7 in 3 ms, for an hour.
        let mut limiter = limiter(Scope::All, None, Some(bucket(7, 3)));
        let mut now = 0;
        let mut begun = 0u64;
        while now < 1_000 * MS {
            if limiter.admits_at(now, 0, Direction::ToGuest) {
                limiter.spend(Direction::ToGuest, 0);
                begun += 1;
            }
            now += 100_003;
        }
        assert!((2333..=2341).contains(&begun), "{begun}");
    }

    #[test]
    fn what_comes_once_comes_once() {
        let ops = TokenBucket { one_time_burst: Some(50), ..bucket(10, 1000) };
        let mut limiter = limiter(Scope::All, None, Some(ops));
        assert_eq!(begun(&mut limiter, (0, 1), 0), 60);
        // Full again, a long time after.
        assert_eq!(begun(&mut limiter, (60_000 * MS, 60_000 * MS + 1), 0), 10);
    }

    #[test]
    fn a_direction_has_limits_of_its_own_and_shares_those_of_all() {
        use Direction::{FromGuest, ToGuest};
        let limits = Limits::default()
            .with(Scope::Only(ToGuest), RateLimiter { ops: Some(bucket(1, 1000)), bandwidth: None })
            .with(Scope::All, RateLimiter { ops: Some(bucket(3, 1000)), bandwidth: None });
        let mut limiter = Limiter::default();
        limiter.set(&limits);
        limiter.levels.iter_mut().flatten().flatten().for_each(|level| level.at = 0);
        let mut begin = |queue, direction| {
            let admitted = limiter.admits_at(0, queue, direction);
            if admitted {
                limiter.spend(direction, 1);
            }
            admitted
        };
        assert_eq!((begin(0, ToGuest), begin(0, ToGuest)), (true, false));
        assert_eq!((begin(3, FromGuest), begin(3, FromGuest), begin(3, FromGuest)), (true, true, false));
        assert!(limiter.take_wake().is_some() && limiter.take_wake().is_none(), "one timer is enough");
        assert_eq!(limiter.take_waiting(), 0b1001);
        assert_eq!((limiter.take_waiting(), limiter.take_wake()), (0, None));
    }

    #[test]
    fn no_room_and_no_time_are_no_limits() {
        for bucket in [bucket(0, 100), bucket(100, 0)] {
            assert!(!limiter(Scope::All, Some(bucket), Some(bucket)).is_limited());
        }
    }

    #[test]
    fn numbers_of_any_size_are_borne() {
        for (size, refill) in [(u64::MAX, u64::MAX), (1, u64::MAX), (u64::MAX, 1), (1, 1)] {
            let mut limiter = limiter(Scope::All, Some(bucket(size, refill)), None);
            for now in [0, 1, u64::MAX / 2, u64::MAX] {
                for _ in 0..3 {
                    if limiter.admits_at(now, 63, Direction::FromGuest) {
                        limiter.spend(Direction::FromGuest, u64::MAX);
                    }
                }
                limiter.take_wake();
            }
        }
    }

    #[test]
    fn a_limit_that_stays_keeps_its_level() {
        let mut limiter = limiter(Scope::All, Some(bucket(10, 1000)), Some(bucket(1, 1000)));
        limiter.spend(Direction::ToGuest, 10);
        let ops = Some(bucket(2, 1000));
        limiter.set(&Limits::default().with(Scope::All, RateLimiter { bandwidth: Some(bucket(10, 1000)), ops }));
        let [bytes, ops] = &limiter.levels[0];
        assert_eq!(bytes.as_ref().unwrap().units, 0);
        assert_eq!(ops.as_ref().unwrap().units, ops.as_ref().unwrap().room());
        limiter.set(&Limits::default());
        assert!(!limiter.is_limited());
    }
}
