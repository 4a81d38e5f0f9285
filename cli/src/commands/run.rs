//! `bulkhead run` and `create`: an image in, a container, and for `run` the command's own output and exit code out.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use guest_images::{ImageRef, Keeper, PreparedImage, ProcessDefaults, Store};
use guest_protocol::{Found, Process};
use vmm::events::monotonic_ns;

use super::attach::in_front;
use super::restore::run_warm;
use crate::args::{Isolation, Network, PodCreate, Run, Talk};
use crate::containers::record::{State, now_ns};
use crate::containers::{Containers, Held, Id, Record};
use crate::env;
use crate::failure::{Failure, Outcome};
use crate::life::{self, Kept, Life};
use crate::logs::writer::Writer;
use crate::net;
use crate::oci;
use crate::output::{self, Progress};
use crate::owner::Attached;
use crate::paths;
use crate::pods::{self, member};
use crate::restart::Policy;
use crate::session::{Io, Recorder};
use crate::signals::{self, Guard};
use crate::snapshots::name::WARM;
use crate::supervisor;
use crate::upper;
use crate::volumes::named::Locked;
use crate::volumes::{self, VolumeFlag};

/// SIGTERM.
const USUAL_STOP_SIGNAL: u8 = 15;

/// Runs it; `began` is when this process did.
pub fn run(mut args: Run, talk: Talk, began: u64) -> Outcome {
    if args.image_and_command[0].ends_with(WARM) {
        let container = args.isolation == Isolation::Container;
        if let Some(flag) = args.pod.as_ref().map(|_| "--pod").or(container.then_some("--isolation container")) {
            let image = &args.image_and_command[0];
            return Err(anyhow!("{flag}: '{image}' is a warm image, which has a microVM of its own").into());
        }
        return run_warm(args, talk, began);
    }
    if args.pod.is_some() {
        member::check(&args)?;
    }
    if args.restart != Policy::No && !args.detach {
        return Err(anyhow!("--restart: in the foreground a container is run once; say -d as well").into());
    }
    let guard: Guard<Kept> = Guard::new().context("cannot wait for signals")?;
    let io = if args.detach { None } else { Some(Io::inherit(args.interactive, args.tty)?) };
    decide_network(&mut args)?;
    life::check(&args)?;
    decide_pod(&mut args)?;
    let (image, store, volumes) = prepare(&mut args, talk)?;
    let image_ready = monotonic_ns();
    let holding = guard.hold();
    // What can be left behind is not this process's; but only here there is somebody to hear of phases.
    let apart = args.interactive && args.tty && !args.detach && !talk.verbose;
    let keys = args.detach_keys.take();
    let (name, held, record) = make(args, &image, &store, volumes, apart || io.is_none())?;
    let Some(io) = io else {
        let mut waiting = supervisor::spawn(supervisor::VERB, held, None)?;
        drop(holding);
        waiting.wait()?;
        output::print(&format!("{}\n", record.id))?;
        return Ok(0);
    };
    if apart {
        return in_front(&name, held, io, keys, &guard, holding);
    }
    let log = if record.flags.rm { None } else { Some(Writer::open(&held.dir()).context("log")?) };
    let log = log.map(|log| -> Arc<dyn Recorder> { Arc::new(log) });
    let attached = Attached::new(log, None, record.flags.tty, None);
    let (layers, keys) = (image.disk().cloned().collect(), image.keys());
    let times = [began, image_ready];
    let life = Life { name, record, layers, keys, io, attached, report: None, changes: None, talk, times };
    life.live(&guard, holding, held)
}

/// Makes a container that does not run yet, and prints its id.
pub fn create(mut args: Run, talk: Talk) -> Outcome {
    if args.image_and_command[0].ends_with(WARM) {
        return Err(anyhow!("'{}' is a warm image: it can only be run", args.image_and_command[0]).into());
    }
    if args.detach {
        return Err(anyhow!("-d: what is created does not run yet; leave it out").into());
    }
    if args.pod.is_some() {
        member::check(&args)?;
    }
    let guard: Guard<()> = Guard::new().context("cannot wait for signals")?;
    decide_network(&mut args).map_err(Failure::refused)?;
    life::check(&args)?;
    decide_pod(&mut args).map_err(Failure::refused)?;
    let (image, store, volumes) = prepare(&mut args, talk).map_err(Failure::refused)?;
    let holding = guard.hold();
    let (_, held, record) = make(args, &image, &store, volumes, true).map_err(Failure::refused)?;
    held.stays();
    drop(holding);
    output::print(&format!("{}\n", record.id))?;
    Ok(0)
}

/// A container keeps the network that it was made with, whatever this host has later.
pub fn decide_network(args: &mut Run) -> anyhow::Result<()> {
    // That of one in a pod is the pod's.
    if args.network.is_none() && args.pod.is_none() {
        let usual = net::usual(&args.publish, &args.egress)?;
        let asked = !args.publish.is_empty() || !args.egress.is_empty();
        let none = args.isolation == Isolation::Container && !asked && oci::check_interfaces().is_err();
        args.network = Some(if none { Network::None } else { usual });
    }
    if let Some(made) = net::made(args.network.as_ref())? {
        args.network = Some(Network::Named(made.name));
    }
    Ok(())
}

/// The pod that a container is to be in, by its id: it is the same whatever its name becomes. `new:NAME` makes it.
fn decide_pod(args: &mut Run) -> anyhow::Result<()> {
    let Some(word) = &args.pod else { return Ok(()) };
    let id = match word.strip_prefix("new:") {
        Some("") => return Err(anyhow!("--pod new: the name is missing")),
        Some(name) => super::pods::make(PodCreate { name: Some(name.into()), ..PodCreate::default() })?,
        None => pods::find(word)?.record.id.to_string(),
    };
    args.pod = Some(id);
    Ok(())
}

/// The image, and what is made for a container of it before there is one: its named volumes.
pub fn prepare(args: &mut Run, talk: Talk) -> anyhow::Result<(PreparedImage, Store, Option<Locked>)> {
    if args.rm && args.restart != Policy::No {
        return Err(anyhow!("--restart and --rm exclude each other: what goes with its end cannot be started again"));
    }
    args.name.as_deref().map(Containers::check_name).transpose().context("--name")?;
    let reference: ImageRef = args.image_and_command[0].parse().map_err(guest_images::ImageError::from)?;
    let store = Store::open(paths::store())?;
    let image = store.prepare(&reference, &mut Progress::new(talk))?;
    if args.isolation == Isolation::Container {
        // Here somebody sees that it takes a while.
        store.unpacked(&image.disk().cloned().collect::<Vec<_>>(), &mut Progress::new(talk))?;
    }
    let taken = args.settings.tmpfs.iter().map(|tmpfs| tmpfs.target.as_str()).collect();
    volumes::add_of_image(&mut args.volume, &image.config.volumes, &taken, args.image_volume)?;
    let volumes = volumes::prepare(&mut args.volume, &image, args.rm)?;
    Ok((image, store, volumes))
}

/// Makes a container of an image, for others to run, or for this process alone. Its named volumes have been seen to.
pub fn make(
    mut args: Run,
    image: &PreparedImage,
    store: &Store,
    volumes: Option<Locked>,
    for_others: bool,
) -> anyhow::Result<(String, Held, Record)> {
    let command = args.image_and_command.split_off(1);
    let mut process = process(&args, command, &image.config)?;
    process.found = image.find(&process.user, process.args.first().map_or("", String::as_str), &process.env);
    let stop_signal = match (&args.stop_signal, &image.config.stop_signal) {
        (Some(signal), _) => *signal,
        // What an image says is no reason to refuse it.
        (None, Some(signal)) => signals::number(signal).unwrap_or(USUAL_STOP_SIGNAL),
        (None, None) => USUAL_STOP_SIGNAL,
    };
    let labels = image.config.labels.iter().map(|(key, value)| (key.clone(), value.clone()));
    let labels = labels.chain(args.label.iter().map(|label| {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        (key.to_owned(), value.to_owned())
    }));
    let labels = labels.collect();
    args.volume.iter_mut().try_for_each(VolumeFlag::make_absolute)?;
    if let Some(kernel) = &mut args.kernel {
        *kernel = std::path::absolute(&kernel)?;
    }
    let name = args.name.take();
    let mut id_file = args.cidfile.take().map(IdFile::open).transpose()?;
    let image_id = image.id.to_string();
    // This process has the layers in use for as long as it lives.
    let (on_disk, needless) = (args.on_disk(), args.rm && !for_others);
    let (isolation, runtime) = (args.isolation, args.runtime.clone());
    let record = |id| Record {
        id,
        created_ns: now_ns(),
        image_id,
        labels,
        flags: args,
        process,
        stop_signal,
        state: State::default(),
    };
    let containers = Containers::of(store.dir())?;
    let furnish = |id: &Id, dir: &Path| {
        if !needless {
            store.keep(Keeper::Container(id.as_str()), &image.keys())?;
        }
        match isolation {
            Isolation::Container => oci::furnish(dir, runtime.as_deref()),
            Isolation::Vm if on_disk => upper::make(containers.dir(), dir),
            Isolation::Vm => Ok(()),
        }
    };
    let made = containers.create(name.as_deref(), record, furnish)?;
    // Its record says which it has.
    if let Some(locked) = volumes.filter(|_| made.2.flags.rm) {
        locked.pass_with(&made.2.id, &made.2.flags.volume)?;
    }
    if let Some(file) = &mut id_file {
        file.write(&made.2.id)?;
    }
    Ok(made)
}

/// The file of `--cidfile`. Removed when dropped, unless there is an id in it.
struct IdFile {
    path: PathBuf,
    file: File,
    written: bool,
}

impl IdFile {
    fn open(path: PathBuf) -> anyhow::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = file.with_context(|| format!("--cidfile {}: a container may have it still", path.display()))?;
        Ok(IdFile { path, file, written: false })
    }

    fn write(&mut self, id: &Id) -> anyhow::Result<()> {
        self.file.write_all(id.as_str().as_bytes()).with_context(|| format!("--cidfile {}", self.path.display()))?;
        self.written = true;
        Ok(())
    }
}

impl Drop for IdFile {
    fn drop(&mut self) {
        if !self.written {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The process: the image's wishes, changed by the flags, with docker's rules.
fn process(args: &Run, command: Vec<String>, image: &ProcessDefaults) -> anyhow::Result<Process> {
    let mut words = match args.entrypoint.as_deref() {
        // An entrypoint of the user's own leaves nothing of the image's command.
        Some("") => vec![],
        Some(program) => vec![program.to_owned()],
        None => image.entrypoint.clone(),
    };
    if !command.is_empty() {
        words.extend(command);
    } else if args.entrypoint.is_none() {
        words.extend(image.cmd.iter().cloned());
    }
    if words.is_empty() {
        return Err(anyhow!("no command: the image names none; write one after the image"));
    }
    let cwd = match args.workdir.as_deref() {
        Some(dir) if !dir.starts_with('/') => return Err(anyhow!("working directory '{dir}': not an absolute path")),
        Some(dir) => dir.to_owned(),
        None if image.working_dir.is_empty() => "/".into(),
        None if image.working_dir.starts_with('/') => image.working_dir.clone(),
        None => format!("/{}", image.working_dir),
    };
    Ok(Process {
        args: words,
        env: env::merge(&image.env, &args.env_file, &args.env, |key| std::env::var(key).ok())?,
        cwd,
        user: args.user.clone().unwrap_or_else(|| image.user.clone()),
        // The session fills in both, from the streams that there are.
        terminal: None,
        stdin: false,
        found: Found::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Verb};
    use clap::Parser as _;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|&word| word.to_owned()).collect()
    }

    fn image() -> ProcessDefaults {
        ProcessDefaults {
            entrypoint: words(&["/entry", "-x"]),
            cmd: words(&["default"]),
            env: words(&["A=image", "B=image"]),
            working_dir: "/srv".into(),
            user: "app".into(),
            ..ProcessDefaults::default()
        }
    }

    fn process_of(line: &[&str], image: &ProcessDefaults) -> anyhow::Result<Process> {
        let cli = Cli::parse_from(["bulkhead", "run"].iter().chain(line));
        let Verb::Run(mut run) = cli.verb else { panic!("not run") };
        let command = run.image_and_command.split_off(1);
        process(&run, command, image)
    }

    #[test]
    fn a_command_replaces_cmd_and_an_entrypoint_both() {
        let args = |line: &[&str]| process_of(line, &image()).unwrap().args;
        assert_eq!(args(&["i"]), ["/entry", "-x", "default"]);
        assert_eq!(args(&["i", "a", "b"]), ["/entry", "-x", "a", "b"]);
        assert_eq!(args(&["--entrypoint", "sh", "i"]), ["sh"]);
        assert_eq!(args(&["--entrypoint", "sh", "i", "-c", "x"]), ["sh", "-c", "x"]);
        assert_eq!(args(&["--entrypoint", "", "i", "ls"]), ["ls"]);
        assert!(process_of(&["--entrypoint", "", "i"], &image()).is_err());
        assert!(process_of(&["i"], &ProcessDefaults::default()).is_err());
    }

    #[test]
    fn flags_win_over_the_image() {
        let got = process_of(&["-e", "A=flag", "-e", "C=1", "-w", "/tmp", "-u", "0:0", "i"], &image()).unwrap();
        assert_eq!(got.env, ["A=flag", "B=image", "C=1"]);
        assert_eq!((got.cwd.as_str(), got.user.as_str()), ("/tmp", "0:0"));
        let got = process_of(&["i"], &image()).unwrap();
        assert_eq!((got.cwd.as_str(), got.user.as_str()), ("/srv", "app"));
        assert!(process_of(&["-w", "rel", "i"], &image()).unwrap_err().to_string().contains("rel"));
    }
}
