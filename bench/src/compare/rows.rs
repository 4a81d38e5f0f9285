//! What is measured of each arm, row by row.

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::arm::{Arm, Instance, Made};
use super::order::{share, turns};
use super::running::{Ended, Input, Patience, Running};
use super::{Fleet, PREFIX, Scope, What, described, milliseconds};
use crate::process::BenchError;
use crate::report::metric::{GROUPS, Kind};
use crate::report::{Document, Phase};

/// Rounds of the loops in an instance. The first warms up; of the other there is one, since what comes next to it in time is like it, and
/// many such would look surer than they are.
const ROUNDS: usize = 2;
/// How many times as long as a run the loops take, about, and the part of an arm's time for all of them.
const LOOP_RUNS: u32 = 2;
const LOOP_PART: u32 = 2;
/// Steps of both loops.
pub(super) const COMPUTE: u32 = 20_000;
pub(super) const STATS: u32 = 300;
/// For this part of an arm's time, instances are started and ended for the rate; those under way then count as well.
const WINDOW: u32 = 12;
/// How often an arm's steps are asked for one by one.
const STEPS: usize = 10;

pub(super) struct Entry {
    pub kind: &'static Kind,
    pub arm: Box<dyn Arm>,
    /// What a run takes, with what is made before it and cleared away after it.
    each: Duration,
}

/// Measurements under way.
pub(super) struct Session<'a> {
    pub what: &'a What<'a>,
    pub patience: Patience<'a>,
    pub document: &'a mut Document,
    /// Those that are measured.
    pub(super) entries: Vec<Entry>,
    pub(super) random: Rng,
    number: AtomicU64,
}

/// A script, as words.
pub(super) fn shell(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(str::to_owned).to_vec()
}

/// Both loops in turns, with a line before and after each.
fn kernels() -> Vec<String> {
    shell(&format!(
        "i=0; echo; while [ $i -lt {ROUNDS} ]; do \
         n=0; while [ $n -lt {COMPUTE} ]; do n=$((n+1)); done; echo; \
         n=0; while [ -e / ] && [ $n -lt {STATS} ]; do n=$((n+1)); done; echo; i=$((i+1)); done"
    ))
}

impl<'a> Session<'a> {
    pub fn new(what: &'a What<'a>, patience: Patience<'a>, document: &'a mut Document) -> Self {
        let random = Rng::with_seed(what.seed);
        Session { what, patience, document, entries: Vec::new(), random, number: AtomicU64::new(0) }
    }

    /// An error if everything is to end.
    pub fn check_stop(&self) -> Result<(), BenchError> {
        let mut fds = [PollFd::from_borrowed_fd(self.patience.stop, PollFlags::IN)];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(1) => Err(BenchError::Interrupted),
            _ => Ok(()),
        }
    }

    /// Takes an arm in, if it runs the command once: that pays for cold caches, and is no sample.
    pub fn admit(&mut self, kind: &'static Kind, made: Result<Made, String>) -> Result<(), BenchError> {
        let (version, result) = match made {
            Ok(Made { version, arm }) => {
                // The first may make what later ones go on from; the second tells what they take.
                let warm = self.once(&*arm, self.what.command).and_then(|_| {
                    let began = Instant::now();
                    self.once(&*arm, self.what.command)?;
                    Ok(began.elapsed())
                });
                (Some(version), warm.map(|each| Entry { kind, arm, each }))
            }
            Err(problem) => (None, Err(BenchError::Container(problem))),
        };
        let problem = match result {
            Ok(entry) => {
                self.entries.push(entry);
                None
            }
            Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
            Err(error) => Some(error.to_string()),
        };
        self.document.arms.push(described(kind, version, problem));
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A number that no instance has had.
    pub(super) fn next(&self) -> u64 {
        self.number.fetch_add(1, Ordering::Relaxed)
    }

    /// How many instances each arm has, one of which takes as long as so many runs: `most`, or as many as fit into the budget.
    pub(super) fn shares(&self, most: usize, runs: u32, budget: Duration) -> Vec<usize> {
        self.entries.iter().map(|entry| share(most, budget, entry.each * runs)).collect()
    }

    /// All rows.
    pub fn all(&mut self) -> Result<(), BenchError> {
        match self.what.scope {
            Scope::Arms => {}
            Scope::Variants => return self.times().and_then(|()| self.memory()),
            Scope::Fleets(fleet) => return self.fleets(fleet),
        }
        for (group, _) in
            GROUPS.into_iter().filter(|(group, _)| self.what.rows.is_empty() || self.what.rows.contains(group))
        {
            match group {
                "sizes" => self.disks(),
                "times" => self.times().and_then(|()| self.steps())?,
                "memory" => self.memory()?,
                "loops" => self.kernels()?,
                "moves" => self.moves()?,
                _ => self.rates()?,
            }
        }
        Ok(())
    }

    /// Starts an instance that runs the words; `open`: what it reads does not end before it is told to.
    pub fn instance<'i>(&self, arm: &'i dyn Arm, words: &[String], open: bool) -> Result<Instance<'i>, BenchError> {
        let number = self.next();
        let id = format!("{PREFIX}{}-{number}", std::process::id());
        let bytes = arm.input(words);
        let input = if open { Input::Open(bytes) } else { Input::Bytes(bytes) };
        let running = Running::start(arm.command(&id, words)?, input)?;
        Ok(Instance { running: Some(running), id, arm })
    }

    /// Runs the words to their end.
    fn once(&self, arm: &dyn Arm, words: &[String]) -> Result<Ended, BenchError> {
        let mut instance = self.instance(arm, words, false)?;
        let Some(running) = instance.running.take() else { return Err(BenchError::NoRuns) };
        good(arm, finish(arm, running, &instance.id, self.patience)?)
    }

    /// What an arm cannot do is said beside what it can; only what is to end ends all.
    pub(super) fn judge(&mut self, kind: &Kind, what: &str, error: BenchError) -> Result<(), BenchError> {
        if matches!(error, BenchError::Interrupted) {
            return Err(error);
        }
        let problem = format!("{what}: {error}");
        (self.what.say)(&format!("{}: {problem}", kind.name));
        if let Some(arm) = self.document.arms.iter_mut().find(|arm| arm.name == kind.name) {
            arm.problem.get_or_insert(problem);
        }
        Ok(())
    }

    fn disks(&mut self) {
        for Entry { kind, arm, .. } in &self.entries {
            if let Some(kib) = arm.image_disk() {
                self.document.add(kind.name, "image-disk", &[kib as f64]);
            }
        }
    }

    fn times(&mut self) -> Result<(), BenchError> {
        let turns = turns(&self.shares(self.what.samples, 1, self.what.budget), &mut self.random);
        let mut failed = vec![false; self.entries.len()];
        for (done, turn) in turns.iter().enumerate() {
            (self.what.say)(&format!("times: {done} of {}", turns.len()));
            let Entry { kind, arm, .. } = &self.entries[*turn];
            if failed[*turn] {
                continue;
            }
            match self.once(&**arm, self.what.command) {
                Ok(ended) => {
                    let phases = arm.phases(&ended.seen.stderr);
                    add_times(self.document, kind.name, &ended);
                    phases.into_iter().for_each(|(phase, ms)| add_phase(self.document, kind.name, phase, ms));
                }
                Err(error) => {
                    failed[*turn] = true;
                    self.judge(kind, "times", error)?;
                }
            }
        }
        Ok(())
    }

    fn kernels(&mut self) -> Result<(), BenchError> {
        let mut shares = self.shares(self.what.samples, LOOP_RUNS, self.what.budget / LOOP_PART);
        // Once it runs, a guest that has booted is like any other.
        shares.iter_mut().zip(&self.entries).for_each(|(share, entry)| *share *= usize::from(!entry.kind.boots));
        for turn in turns(&shares, &mut self.random) {
            let Entry { kind, arm, .. } = &self.entries[turn];
            (self.what.say)(&format!("kernels: {}", kind.name));
            let rounds = self.once(&**arm, &kernels()).map(|ended| {
                let between = |pair: &[Duration]| milliseconds(pair[1].saturating_sub(pair[0]));
                let lengths: Vec<f64> = ended.seen.lines.windows(2).map(between).skip(2).collect();
                let every = |first: usize| lengths.iter().skip(first).step_by(2).copied().collect::<Vec<_>>();
                [every(0), every(1)]
            });
            match rounds {
                Ok([compute, syscalls]) => {
                    self.document.add(kind.name, "compute", &compute);
                    self.document.add(kind.name, "syscalls", &syscalls);
                }
                Err(error) => self.judge(kind, "kernels", error)?,
            }
        }
        Ok(())
    }

    fn fleets(&mut self, fleet: Fleet) -> Result<(), BenchError> {
        let mut order: Vec<usize> = (0..self.entries.len()).collect();
        self.random.shuffle(&mut order);
        for turn in order {
            let Entry { kind, arm, .. } = &self.entries[turn];
            (self.what.say)(&format!("fleet: {}", kind.name));
            match self.fill(&**arm, fleet) {
                Ok(filled) => {
                    let count = filled.starts.len() as f64;
                    self.document.add(kind.name, "fleet", &[count]);
                    self.document.add(kind.name, "fleet-start", &filled.starts);
                    self.document.add(kind.name, "fleet-memory", &[filled.each_kib]);
                    self.document.add(kind.name, "fleet-left", &[filled.left_kib]);
                    self.document.notes.push(format!("{}: no more than {count}: {}", kind.name, filled.why));
                }
                Err(error) => self.judge(kind, "fleet", error)?,
            }
        }
        Ok(())
    }

    fn rates(&mut self) -> Result<(), BenchError> {
        let mut order: Vec<usize> = (0..self.entries.len()).collect();
        self.random.shuffle(&mut order);
        for turn in order {
            let Entry { kind, arm, .. } = &self.entries[turn];
            (self.what.say)(&format!("rate: {}", kind.name));
            match self.rate(&**arm) {
                Ok(rate) => self.document.add(kind.name, "rate", &[rate]),
                Err(error) => self.judge(kind, "rate", error)?,
            }
        }
        Ok(())
    }

    /// Instances a minute, as many at a time as there are processors.
    fn rate(&self, arm: &dyn Arm) -> Result<f64, BenchError> {
        let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
        let began = Instant::now();
        // What the closure needs; the caller's way to say something is not for several threads.
        let (number, patience, words) = (&self.number, self.patience, self.what.command);
        let window = self.what.budget / WINDOW;
        let work = move || {
            let mut count = 0.0;
            loop {
                let id = format!("{PREFIX}{}-{}", std::process::id(), number.fetch_add(1, Ordering::Relaxed));
                let running = Running::start(arm.command(&id, words)?, Input::Bytes(arm.input(words)))?;
                good(arm, finish(arm, running, &id, patience)?)?;
                count += 1.0;
                let elapsed = began.elapsed();
                if elapsed >= window {
                    return Ok(count / elapsed.as_secs_f64() * 60.0);
                }
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            let joined = threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err(BenchError::Container("a thread panicked".into()))));
            // All of them are waited for, whatever becomes of the first.
            joined.collect::<Vec<Result<f64, BenchError>>>().into_iter().sum()
        })
    }

    fn steps(&mut self) -> Result<(), BenchError> {
        let shares: Vec<usize> = vec![STEPS; self.entries.len()];
        let mut without = vec![false; self.entries.len()];
        for turn in turns(&shares, &mut self.random) {
            if without[turn] {
                continue;
            }
            let Entry { kind, arm, .. } = &self.entries[turn];
            let number = self.number.fetch_add(1, Ordering::Relaxed);
            let id = format!("{PREFIX}{}-{number}", std::process::id());
            match arm.steps(&id, self.what.command, self.patience) {
                Ok(steps) => {
                    without[turn] = steps.is_empty();
                    steps.into_iter().for_each(|(phase, ms)| add_phase(self.document, kind.name, phase, ms));
                }
                Err(error) => {
                    without[turn] = true;
                    self.judge(kind, "steps", error)?;
                }
            }
        }
        Ok(())
    }
}

/// Waits for the end of an instance, which is gone then: killed by being dropped, if it does not end by itself.
pub(super) fn finish(
    arm: &dyn Arm,
    mut running: Running,
    id: &str,
    patience: Patience<'_>,
) -> Result<Ended, BenchError> {
    let stopped = match arm.mark().filter(|mark| mark.stop) {
        Some(mark) => running.stop_after(mark.text, patience),
        None => Ok(()),
    };
    let ended = stopped.and_then(|()| running.end(patience));
    if ended.is_err() || arm.stays() {
        arm.clear(id);
    }
    ended
}

/// The moments of an instance, if its words have ended well.
fn good(arm: &dyn Arm, ended: Ended) -> Result<Ended, BenchError> {
    match arm.mark() {
        Some(mark) => mark.good(ended),
        None => ended.good("the command"),
    }
}

fn add_times(document: &mut Document, arm: &str, ended: &Ended) {
    document.add(arm, "run", &[milliseconds(ended.took)]);
    if let (Some(first), Some(last)) = (ended.seen.first, ended.seen.last) {
        document.add(arm, "start", &[milliseconds(first)]);
        document.add(arm, "teardown", &[milliseconds(ended.took.saturating_sub(last))]);
    }
}

fn add_phase(document: &mut Document, arm: &str, phase: String, ms: f64) {
    match document.phases.iter_mut().find(|known| known.arm == arm && known.phase == phase) {
        Some(known) => known.samples.push(ms),
        None => document.phases.push(Phase { arm: arm.to_owned(), phase, samples: vec![ms] }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::moving::Errand;
    use crate::report::metric::kind;
    use crate::report::tests::document;
    use std::io::Write as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::process::Command;
    use std::sync::Mutex;

    /// The words, here.
    struct Here<'a> {
        cleared: &'a Mutex<Vec<String>>,
    }

    impl Arm for Here<'static> {
        fn command(&self, _: &str, words: &[String]) -> Result<Command, BenchError> {
            let mut command = Command::new(&words[0]);
            command.args(&words[1..]);
            Ok(command)
        }

        fn clear(&self, id: &str) {
            self.cleared.lock().unwrap().push(id.to_owned());
        }

        fn errand(&self, _: &str, errand: &Errand<'_>) -> Result<Option<Command>, BenchError> {
            let line = "echo disk-write 1; echo start 5; echo failed net: no way";
            assert!(errand.volume.join("bulkhead").is_file() && errand.own.is_dir());
            self.command("", &shell(line)).map(Some)
        }

        fn image_disk(&self) -> Option<u64> {
            Some(100)
        }

        fn instance_disk(&self, _: &str) -> Option<u64> {
            None
        }
    }

    fn here() -> (Made, &'static Mutex<Vec<String>>) {
        let cleared = &*Box::leak(Box::default());
        (Made { version: "1".into(), arm: Box::new(Here { cleared }) }, cleared)
    }

    /// Measures by that command in two arms; `act` is between admission and measuring.
    fn session(command: &[String], act: impl FnOnce(&mut UnixStream)) -> (Result<(), BenchError>, Document) {
        session_of(Scope::Arms, command, act)
    }

    fn session_of(
        scope: Scope,
        command: &[String],
        act: impl FnOnce(&mut UnixStream),
    ) -> (Result<(), BenchError>, Document) {
        let (stop, mut other) = UnixStream::pair().unwrap();
        let mut document = document(&[]);
        document.arms.clear();
        let what = What {
            scope,
            bulkhead: Path::new("/proc/self/exe"),
            version: "1",
            store: Path::new("/nonexistent"),
            image: "image",
            image_kib: 0,
            unpack: &|_| Ok(()),
            process: super::super::Process::default(),
            command,
            arms: &[],
            monitors: &[],
            machine: &|| Err("none".into()),
            rows: &[],
            samples: 8,
            budget: Duration::from_secs(6),
            instances: 3,
            timeout: Duration::from_secs(30),
            seed: 1,
            memory_mib: 1024,
            began: String::new(),
            stop: stop.as_fd(),
            say: &|_| {},
        };
        let patience = Patience { limit: what.timeout, stop: what.stop };
        let mut session = Session::new(&what, patience, &mut document);
        session.admit(kind("runc").unwrap(), Ok(here().0)).unwrap();
        session.admit(kind("crun").unwrap(), Err("not installed".into())).unwrap();
        act(&mut other);
        let result = session.all();
        drop(session);
        (result, document)
    }

    #[test]
    fn all_rows_are_measured_and_what_is_missing_is_named() {
        let (result, document) = session(&shell("echo a"), |_| {});
        result.unwrap();
        assert_eq!(document.arms[1].problem.as_deref(), Some("not installed"));
        let problem = document.arms[0].problem.as_deref();
        assert!(problem.is_some_and(|why| why.contains("no row 'start'")), "a row is not another's: {problem:?}");
        assert_eq!(document.samples("runc", "disk-write"), [1.0].repeat(8));
        let count = |metric| document.samples("runc", metric).len();
        let counts = ["start", "run", "teardown", "memory-next", "memory-front", "rate", "image-disk"].map(count);
        assert_eq!(counts, [8, 8, 8, 2, 3, 1, 1]);
        assert_eq!([count("compute"), count("syscalls")], [8; 2]);
        assert!(document.samples("runc", "memory-first")[0] > 0.0);
        assert!(
            document
                .samples("runc", "run")
                .iter()
                .zip(document.samples("runc", "start"))
                .all(|(run, start)| run >= start)
        );
        assert_eq!(document.measured(), ["runc"]);
    }

    #[test]
    fn a_fleet_grows_until_something_speaks_against_it() {
        let fleet = |objective: &str, most| {
            let scope = Scope::Fleets(Fleet { objective: objective.parse().unwrap(), most });
            let (result, document) = session_of(scope, &shell("echo a"), |_| {});
            result.unwrap();
            assert_eq!(document.samples("runc", "fleet")[0] as usize, document.samples("runc", "fleet-start").len());
            assert!(document.samples("runc", "fleet-memory")[0] > 0.0);
            (document.samples("runc", "fleet")[0], document.notes.join("\n"))
        };
        let (count, why) = fleet("p99<60s", 7);
        assert!(count == 7.0 && why.contains("--most"), "{why}");
        // Fewer than five starts say nothing.
        let (count, why) = fleet("p50<0.001ms", 100);
        assert!(count == 5.0 && why.contains("p50 of the last 5 starts"), "{why}");
    }

    #[test]
    fn told_to_stop_it_keeps_what_there_is() {
        let (result, document) = session(&shell("echo a"), |other| other.write_all(b"x").unwrap());
        assert!(matches!(result, Err(BenchError::Interrupted)), "{result:?}");
        assert_eq!(document.samples("runc", "image-disk"), [100.0]);
        assert!(document.samples("runc", "run").is_empty());
    }

    #[test]
    fn an_arm_whose_command_fails_is_named_with_its_words() {
        let (result, document) = session(&shell("echo no luck >&2; exit 3"), |_| {});
        result.unwrap();
        let problem = document.arms[0].problem.as_deref().unwrap();
        assert!(problem.contains("exit code 3") && problem.contains("no luck"), "{problem}");
        assert!(document.measured().is_empty());
    }

    #[test]
    fn what_does_not_end_is_cleared_away() {
        let (stop, _other) = UnixStream::pair().unwrap();
        let (Made { arm, .. }, cleared) = here();
        let running = Running::start(arm.command("", &shell("read x")).unwrap(), Input::Open(Vec::new())).unwrap();
        let patience = Patience { limit: Duration::from_millis(20), stop: stop.as_fd() };
        let mut instance = Instance { running: Some(running), id: "one".into(), arm: &*arm };
        assert!(instance.running.as_mut().unwrap().line(1, patience).is_err());
        drop(instance);
        assert_eq!(*cleared.lock().unwrap(), ["one"]);
    }
}
