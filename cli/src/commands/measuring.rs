//! Measuring for `bench compare` and `bench ablate`, and looking for `audit`: an image prepared, signals heard, progress told.

use std::fs;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use bench::compare::monitors::Machine;
use bench::compare::{self, Process, Scope, What};
use bench::process::BenchError;
use bench::report::Document;
use guest_images::kernel::{self, Kernel};
use guest_images::{PreparedImage, Store};
use guest_protocol::{DEFAULT_PATH, account};
use indicatif::ProgressBar;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use vmm::host;

use crate::args::Talk;
use crate::clock;
use crate::containers::record::now_ns;
use crate::failure::sanitize;
use crate::life::{USUAL_CMDLINE, kernel_kind};
use crate::output::Progress;
use crate::paths;

/// What an image is run for if nothing else is asked for: it says something, and ends.
const COMMAND: [&str; 3] = ["sh", "-c", "echo ready"];

/// What the user asks for.
pub struct Wish<'a> {
    pub scope: Scope,
    pub image_and_command: &'a [String],
    pub arms: &'a [&'static str],
    /// Other monitors, by their arms' names.
    pub monitors: &'a [(&'static str, PathBuf)],
    /// The kernel of bare microVMs; the one that containers have here, if none is given.
    pub kernel: Option<&'a Path>,
    /// Groups of rows; none: all.
    pub rows: &'a [&'static str],
    pub samples: u32,
    /// Seconds.
    pub budget: u64,
    pub instances: u32,
    /// Seconds.
    pub timeout: u64,
    pub seed: Option<u64>,
    /// MiB.
    pub memory_budget: Option<u64>,
}

impl<'a> Wish<'a> {
    /// One of everything, within `timeout` seconds.
    pub fn once(scope: Scope, image_and_command: &'a [String], arms: &'a [&'static str], timeout: u64) -> Self {
        Wish {
            scope,
            image_and_command,
            arms,
            monitors: &[],
            kernel: None,
            rows: &[],
            samples: 1,
            budget: 1,
            instances: 1,
            timeout,
            seed: None,
            memory_budget: None,
        }
    }
}

/// Measures; and the signal that broke it off, if one did.
pub fn measure(wish: &Wish<'_>, talk: Talk) -> anyhow::Result<(Document, Option<u8>)> {
    let (document, signal) = prepared(wish, talk, compare::run)?;
    Ok((document?, signal))
}

/// Does something with an image and what is to become of it; and the signal that broke it off, if one did.
pub fn prepared<T>(
    wish: &Wish<'_>,
    talk: Talk,
    work: impl FnOnce(&What<'_>) -> Result<T, BenchError>,
) -> anyhow::Result<(Result<T, BenchError>, Option<u8>)> {
    let (reference, command) = wish.image_and_command.split_first().context("no image")?;
    // As many write it who have a command with flags.
    let command = command.strip_prefix(&["--".to_owned()]).unwrap_or(command);
    let command: Vec<String> = if command.is_empty() { COMMAND.map(str::to_owned).to_vec() } else { command.to_vec() };
    let image = reference.parse().map_err(guest_images::ImageError::from)?;
    let store = Store::open(paths::store())?;
    let image = store.prepare(&image, &mut Progress::new(talk))?;
    let process = process(&image, &command)?;
    let stop = Stop::new().context("cannot wait for signals")?;
    let say = Saying::new(talk);
    let what = What {
        scope: wish.scope,
        bulkhead: Path::new("/proc/self/exe"),
        version: env!("CARGO_PKG_VERSION"),
        store: store.dir(),
        image: reference,
        image_kib: image.disk().filter_map(|layer| fs::metadata(&layer.path).ok()).map(|meta| meta.blocks() / 2).sum(),
        unpack: &|dir| image.unpack(dir).map_err(|error| error.to_string()),
        process,
        command: &command,
        arms: wish.arms,
        monitors: wish.monitors,
        machine: &|| machine(&image, wish.kernel).map_err(|error| format!("{error:#}")),
        rows: wish.rows,
        samples: wish.samples as usize,
        budget: Duration::from_secs(wish.budget),
        instances: wish.instances as usize,
        timeout: Duration::from_secs(wish.timeout),
        seed: wish.seed.unwrap_or_else(now_ns),
        memory_mib: wish.memory_budget.unwrap_or_else(host::memory_mib),
        began: clock::rfc3339(now_ns()),
        stop: stop.readable.as_fd(),
        say: &|text| say.say(text),
    };
    let result = work(&what);
    drop(say);
    Ok((result, stop.signal()))
}

/// What bare microVMs are made of.
fn machine(image: &PreparedImage, kernel: Option<&Path>) -> anyhow::Result<Machine> {
    let kernel = match kernel {
        Some(path) => Kernel { path: path.to_owned(), cmdline: USUAL_CMDLINE.into() },
        None => kernel::find(kernel_kind(host::kind()))?,
    };
    let disk = image.disk().map(|layer| layer.path.clone()).collect();
    Ok(Machine { kernel: kernel.path, words: kernel.cmdline, disk })
}

/// How the image's process is to run, but for its words.
fn process(image: &PreparedImage, command: &[String]) -> anyhow::Result<Process> {
    let config = &image.config;
    let mut env = config.env.clone();
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.push(format!("PATH={DEFAULT_PATH}"));
    }
    let found = image.find(&config.user, &command[0], &env).account;
    let account = match found {
        Some(account) => account,
        // A number needs no file that knows it.
        None => account::resolve(&config.user, b"", b"")
            .map_err(|unknown| anyhow!("the image's user: {}", unknown.detail))?,
    };
    let cwd = if config.working_dir.starts_with('/') {
        config.working_dir.clone()
    } else {
        format!("/{}", config.working_dir)
    };
    Ok(Process { env, cwd, uid: account.uid, gid: account.gid, groups: account.groups })
}

/// Signals that end the measuring, and not the process.
pub struct Stop {
    /// Readable once there was one.
    pub readable: UnixStream,
    signal: Arc<AtomicUsize>,
}

impl Stop {
    pub fn new() -> io::Result<Self> {
        let (readable, written) = UnixStream::pair()?;
        let signal = Arc::new(AtomicUsize::new(0));
        for number in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
            // In this order: who is woken finds out by which.
            signal_hook::flag::register_usize(number, signal.clone(), number as usize)?;
            signal_hook::low_level::pipe::register(number, written.try_clone()?)?;
        }
        Ok(Stop { readable, signal })
    }

    pub fn signal(&self) -> Option<u8> {
        u8::try_from(self.signal.load(Ordering::SeqCst)).ok().filter(|signal| *signal != 0)
    }
}

/// What is going on, on stderr: a line that changes at a terminal, lines with --verbose.
pub struct Saying {
    bar: Option<ProgressBar>,
}

impl Saying {
    pub fn new(talk: Talk) -> Self {
        let show = !talk.quiet && !talk.verbose && io::stderr().is_terminal();
        Saying { bar: show.then(ProgressBar::new_spinner) }
    }

    pub fn say(&self, text: &str) {
        tracing::info!("{text}");
        if let Some(bar) = &self.bar {
            bar.set_message(sanitize(text));
            bar.tick();
        }
    }
}

impl Drop for Saying {
    fn drop(&mut self) {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
    }
}
