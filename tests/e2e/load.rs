//! A guest under load is saved while it runs, killed, and goes on, again and again: it notices nothing but the time.
//!
//! The guest is `tests/guest/load.rs`. Connections do not move to another machine, so its stream is made anew after each
//! restore: both say how far they are, and go on from there. What the killed machine did after it was saved never was: this
//! side forgets it, too.

use std::io::{Read, Result, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tests::control::Control;
use tests::{Lab, Running};

use crate::booted::{self, DISK};
use crate::lab;
use crate::snapshots::interactive;

/// How often, where BULKHEAD_TEST_ROUNDS does not say.
const ROUNDS: usize = 6;
/// A whole snapshot is followed by so many changes, each to the one before it.
const CHAIN: usize = 4;
/// Of each kind of work: so much is done before the next snapshot.
const WORK: u64 = 3;
/// Frames that are sent before the guest says that it has them.
const AHEAD: u64 = 8;
/// Words of a frame, and those at the start of one from the guest that are no pattern.
const FRAME: usize = 128;
const FACTS: usize = 8;

/// As in the guest.
fn mix(seed: u64, index: u64) -> u64 {
    (seed ^ index.rotate_left(40))
        .wrapping_add(0x9e37_79b9_7f4a_7c15)
        .wrapping_mul(0xbf58_476d_1ce4_e5b9)
        .rotate_left(29)
}

fn read<const N: usize>(stream: &mut UnixStream) -> Result<[u64; N]> {
    let mut bytes = vec![0; N * 8];
    stream.read_exact(&mut bytes)?;
    let mut words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    Ok(std::array::from_fn(|_| words.next().unwrap()))
}

fn write(stream: &mut UnixStream, words: &[u64]) -> Result<()> {
    stream.write_all(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>())
}

/// What the guest says in a frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Facts {
    monotonic_ns: u64,
    received: u64,
    blocks: u64,
    times: u64,
    rounds: u64,
    wrong: u64,
}

impl Facts {
    /// Everything has gone on since then.
    fn is_beyond(&self, then: &Facts) -> bool {
        let parts = |facts: &Facts| [facts.received, facts.blocks, facts.times, facts.rounds];
        parts(self).iter().zip(parts(then)).all(|(now, then)| *now >= then + WORK)
    }
}

/// What this side knows of the stream.
#[derive(Debug, Default)]
struct Stream {
    /// Connections so far.
    connections: usize,
    /// The last one is still there.
    talks: bool,
    sent: u64,
    received: u64,
    /// The last frame, and the first of this connection.
    last: Facts,
    first: Option<Facts>,
    /// Least time from the guest's clock, as a frame tells it, to this one's: the age of the guest's clock, but for the frame's way.
    age: Option<Duration>,
    /// What the guest said of itself when it connected: frames received and sent.
    place: [u64; 2],
    /// What was not as it should be.
    wrong: Option<String>,
}

/// The host's end of the stream.
struct Host {
    stream: Arc<(Mutex<Stream>, Condvar)>,
    began: Instant,
}

impl Host {
    /// Listens for guests at `path`, for as long as this process lives.
    fn listen(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let host = Host { stream: Arc::default(), began: Instant::now() };
        let (stream, began) = (host.stream.clone(), host.began);
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                // An error is the end of the connection.
                let _ = talk(&stream, connection.unwrap(), began);
            }
        });
        host
    }

    /// Waits until the stream is as `fine` wants it; nothing may be wrong meanwhile.
    fn wait<T>(&self, what: &str, patience: Duration, mut fine: impl FnMut(&Stream) -> Option<T>) -> T {
        let (stream, changed) = &*self.stream;
        let deadline = Instant::now() + patience;
        let mut stream = stream.lock().unwrap();
        loop {
            assert!(stream.wrong.is_none() && stream.last.wrong == 0, "{what}: {stream:?}");
            if let Some(found) = fine(&stream) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what}: nothing after {patience:?}: {stream:?}");
            stream = changed.wait_timeout(stream, left).unwrap().0;
        }
    }
}

fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// A connection of a guest, to its end.
fn talk(shared: &(Mutex<Stream>, Condvar), mut guest: UnixStream, began: Instant) -> Result<()> {
    let [received, sent] = read(&mut guest)?;
    let agreed = {
        let mut stream = shared.0.lock().unwrap();
        if received > stream.sent {
            stream.wrong = Some(format!("the guest has {received} frames of {}", stream.sent));
        }
        stream.received = stream.received.min(sent);
        (stream.connections, stream.talks) = (stream.connections + 1, true);
        (stream.place, stream.first, stream.age) = ([received, sent], None, None);
        stream.received
    };
    let wall = wall_ns();
    write(&mut guest, &[agreed, wall])?;
    let mut to = guest.try_clone()?;
    std::thread::scope(|scope| {
        scope.spawn(move || send(shared, &mut to, received));
        let end = receive(shared, &mut guest, wall, began);
        shared.0.lock().unwrap().talks = false;
        shared.1.notify_all();
        end
    })
}

/// Sends frames from `first` on, a few more than the guest has: some are on their way whenever it is saved.
fn send((stream, changed): &(Mutex<Stream>, Condvar), to: &mut UnixStream, first: u64) {
    for number in first.. {
        let ahead = |stream: &mut Stream| {
            let has = stream.first.map_or(first, |_| stream.last.received);
            stream.talks && number >= has + AHEAD
        };
        let mut stream = changed.wait_while(stream.lock().unwrap(), ahead).unwrap();
        stream.sent = number + 1;
        let talks = stream.talks;
        drop(stream);
        let frame: [u64; FRAME] = std::array::from_fn(|index| mix(!number, index as u64));
        if !talks || write(to, &frame).is_err() {
            return;
        }
    }
}

/// Takes the guest's frames, and looks at all that they say. It has the time since `wall`.
fn receive(
    (stream, changed): &(Mutex<Stream>, Condvar),
    guest: &mut UnixStream,
    wall: u64,
    began: Instant,
) -> Result<()> {
    loop {
        let frame = read::<FRAME>(guest)?;
        let (now, at) = (wall_ns(), began.elapsed());
        let mut stream = stream.lock().unwrap();
        let [number, monotonic_ns, real_ns, received, blocks, times, rounds, wrong] =
            frame[..FACTS].try_into().unwrap();
        let facts = Facts { monotonic_ns, received, blocks, times, rounds, wrong };
        let pattern = (0..).zip(frame).skip(FACTS).all(|(index, word)| word == mix(number, index));
        if number != stream.received || !pattern {
            stream.wrong = Some(format!("frame {number} instead of {}, pattern {pattern}", stream.received));
        }
        if !(wall..=now).contains(&real_ns) {
            stream.wrong = Some(format!("the guest's time is {real_ns}, which is not between {wall} and {now}"));
        }
        if stream.first.is_some() && monotonic_ns < stream.last.monotonic_ns {
            stream.wrong = Some(format!("the guest's clock went back from {:?} to {facts:?}", stream.last));
        }
        stream.received += 1;
        stream.last = facts;
        stream.first.get_or_insert(facts);
        let age = at.saturating_sub(Duration::from_nanos(monotonic_ns));
        stream.age = Some(stream.age.map_or(age, |least| least.min(age)));
        changed.notify_all();
    }
}

/// A machine in a process of its own.
struct Vm {
    running: Running,
    control: Control,
}

impl Vm {
    fn start(lab: &Lab, config: &serde_json::Value, patience: Duration) -> Self {
        let (file, socket) = (lab.path("vm.json"), lab.path("api"));
        std::fs::write(&file, config.to_string()).unwrap();
        let arguments = ["vmm", "--config-file", file.to_str().unwrap(), "--api-sock", socket.to_str().unwrap()];
        let running = interactive(lab, &arguments);
        let control = Control::of(&running, socket, patience);
        Vm { running, control }
    }

    fn kill(self, patience: Duration) {
        self.running.signal(rustix::process::Signal::KILL);
        assert_eq!(self.running.end(patience).code, None);
    }
}

/// The machine as it begins: a Linux that has booted, on two vCPUs, of which the program becomes the first process.
fn begin(lab: &Lab, patience: Duration) -> Vm {
    let (disk, program) = (lab.path("disk"), lab.load_program());
    std::fs::File::create(&disk).unwrap().set_len(DISK).unwrap();
    let bytes = std::fs::metadata(&program).unwrap().len();
    let script = format!(
        "export PATH=/bin\nmount -t tmpfs tmpfs /run\nhead -c {bytes} /dev/vdc >/run/load\nchmod 700 /run/load\nexec /run/load\n"
    );
    let mut vm = Vm::start(lab, &booted::machine(lab, &disk, Some(&program), &script), patience);
    vm.running.say("\n");
    vm
}

#[test]
fn group_8_a_guest_under_load_notices_nothing_but_the_time() {
    let lab = lab!("group_8_a_guest_under_load_notices_nothing_but_the_time");
    if !crate::snapshots::keeps_interrupts("group_8_a_guest_under_load_notices_nothing_but_the_time") {
        return;
    }
    let rounds = std::env::var("BULKHEAD_TEST_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let patience = lab.patience(2);
    let host = Host::listen(&lab.path("v_1024"));
    let mut vm = begin(&lab, patience);
    let begins = |stream: &Stream| stream.last.is_beyond(&Facts::default()).then_some(());
    host.wait("begin", patience, begins);

    let mut oldest = None;
    for round in 0..rounds {
        let name = format!("snapshot-{round}");
        let (before, known) =
            host.wait(&name, patience, |stream| Some((stream.last, [stream.last.received, stream.received])));
        let kind = if round % (CHAIN + 1) == 0 { "Full" } else { "Diff" };
        let request = json!({ "snapshot_path": lab.path(&name), "snapshot_type": kind });
        vm.control.done("PUT", "/snapshot/create", request);
        let age = host.wait(&name, patience, |stream| stream.age);
        oldest.get_or_insert((Instant::now(), age));
        vm.kill(patience);
        vm = go_on(&lab, &host, &name, (before, known), patience);
    }
    vm.kill(patience);

    // The first snapshot again, as old as the test: its guest's clock goes on from where it was then, not from now.
    let (saved, age) = oldest.expect("a round");
    let slept = saved.elapsed();
    let vm = go_on(&lab, &host, "snapshot-0", (Facts::default(), [0, 0]), patience);
    let stood = host.wait("the oldest snapshot", patience, |stream| stream.age).saturating_sub(age);
    // Twice: a frame tells the guest's clock late.
    assert!(2 * stood >= slept, "the guest's clock stood still for {stood:?} of {slept:?}");
    vm.kill(patience);
    lab.assert_clean();
}

/// Goes on from a snapshot, until there all work goes on as well. `before` and `known` are what the guest had said before it was
/// saved, and how far the stream was.
fn go_on(lab: &Lab, host: &Host, name: &str, before: (Facts, [u64; 2]), patience: Duration) -> Vm {
    let connections = host.wait(name, patience, |stream| Some(stream.connections));
    let (before, known) = before;
    let vm = Vm::start(lab, &json!({ "snapshot": { "path": lab.path(name) } }), patience);
    let went_on = |stream: &Stream| {
        let first = stream.first.filter(|_| stream.connections > connections)?;
        stream.last.is_beyond(&first).then_some((first, stream.place))
    };
    let (first, place) = host.wait(name, patience, went_on);
    // It has not lost anything that it had before it was saved.
    let lost = place.iter().zip(known).any(|(has, had)| *has < had) || first.monotonic_ns < before.monotonic_ns;
    assert!(!lost, "{name}: {first:?} after {before:?}, {place:?} after {known:?}");
    vm
}
