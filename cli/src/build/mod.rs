//! Images from Dockerfiles (docs/build.md).
//!
//! ```text
//! Dockerfile ─► stages, each when one is asked for that needs it ─► steps, in order, on a draft (guest_images::Draft)
//!    RUN: a microVM on the draft so far, its changes ────────────┐
//!    COPY, ADD, WORKDIR: a plan of entries, without a microVM ───┴─► a layer, or that of an earlier build ─► draft
//!    all others: the draft's configuration
//! ```
//!
//! - this file: what belongs to all of a build, and images from elsewhere;
//! - [`stage`]: the instructions;
//! - [`copy`], [`plan`], [`items`], [`context`]: COPY and ADD, from what is meant to the layer's entries;
//! - `run`, a microVM for each RUN;
//! - [`config`]: what becomes of the configuration;
//! - [`dockerfile`], [`words`], [`ignore`]: texts; [`progress`]: what is told.

mod config;
mod context;
mod copy;
mod dockerfile;
mod ignore;
mod items;
mod plan;
mod progress;
mod run;
mod stage;
#[cfg(test)]
mod tests;
mod words;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, anyhow, bail};
use guest_images::digest::{Algorithm, Hasher};
use guest_images::oci::reference::normalize_name;
use guest_images::{Contents, Digest, Draft, DraftLayer, ImageError, ImageInfo, ImageRef, Store};
use registry::{Registry, RemoteName};
use serde_json::json;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use crate::args::{Build, Talk};
use crate::clock;
use crate::containers::record::now_ns;
use crate::copying::archive;
use crate::life::Kept;
use crate::output;
use crate::paths;
use crate::signals::Guard;
use config::Config;
use context::Context;
use items::{OfImage, Source as _};
use plan::{Changed, Plan};
use progress::Progress;

/// Most stages of one Dockerfile: they may wait for each other.
const MAX_STAGES: usize = 200;
/// What every Dockerfile may ask for by ARG.
const PLATFORM: [(&str, &str); 8] = [
    ("BUILDPLATFORM", "linux/amd64"),
    ("BUILDOS", "linux"),
    ("BUILDARCH", "amd64"),
    ("BUILDVARIANT", ""),
    ("TARGETPLATFORM", "linux/amd64"),
    ("TARGETOS", "linux"),
    ("TARGETARCH", "amd64"),
    ("TARGETVARIANT", ""),
];
/// Time of all that is made, if it is set: seconds since the epoch (reproducible-builds.org/specs/source-date-epoch).
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// A stage that is done, or an image that is built on or copied from.
#[derive(Debug)]
pub struct Done {
    draft: Draft,
    contents: RefCell<Option<Rc<Contents>>>,
}

/// What belongs to all of a build.
struct Builder<'a> {
    store: &'a Store,
    args: &'a Build,
    talk: Talk,
    /// The Dockerfile, and what it is called.
    text: &'a str,
    called: String,
    file: parse_dockerfile::Dockerfile<'a>,
    escape: char,
    context: Rc<Context>,
    progress: Progress,
    /// ARGs before the first FROM, and those that are always there.
    globals: BTreeMap<String, String>,
    given: BTreeMap<String, String>,
    used: RefCell<HashSet<String>>,
    stages: RefCell<HashMap<usize, Rc<Done>>>,
    images: RefCell<HashMap<String, Rc<Done>>>,
    /// What was merged to run something on.
    merged: RefCell<Vec<PathBuf>>,
    /// Seconds since the epoch.
    made: i64,
    /// Nothing is to be younger.
    clamp: bool,
    created: String,
    /// An instruction has failed, and the error says which.
    failed: Cell<bool>,
    guard: Cell<Option<Guard<Kept>>>,
    signal: Arc<AtomicUsize>,
}

/// Builds the image that `args` ask for, into the store.
pub fn image(args: &Build, talk: Talk) -> anyhow::Result<ImageInfo> {
    image_in(&Store::open(paths::store())?, args, talk)
}

fn image_in(store: &Store, args: &Build, talk: Talk) -> anyhow::Result<ImageInfo> {
    let guard = Guard::new().context("cannot wait for signals")?;
    let signal = Arc::new(AtomicUsize::new(0));
    for number in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
        let value = usize::try_from(number).unwrap_or_default();
        signal_hook::flag::register_usize(number, signal.clone(), value).context("cannot wait for signals")?;
    }
    for name in &args.tag {
        normalize_name(name).with_context(|| format!("-t {name}"))?;
    }
    if args.context.to_str() == Some("-") {
        bail!("a context on stdin is not supported: unpack it, and name the directory");
    }
    let path = args.file.clone().unwrap_or_else(|| args.context.join("Dockerfile"));
    let context = Context::open(&args.context, args.file.as_deref().filter(|file| file.to_str() != Some("-")))?;
    let text = dockerfile::read(&path)?;
    let called = path.file_name().map_or_else(|| "Dockerfile".into(), |name| name.to_string_lossy().into_owned());
    let file = parse_dockerfile::parse(&text).map_err(|error| {
        let line = error.line();
        let whole = error.to_string();
        let what = whole.rsplit_once(" at line ").map_or(&*whole, |(what, _)| what);
        anyhow!("{called}:{line}: {what}")
    })?;
    if file.stages().len() > MAX_STAGES {
        bail!("{called}: more than {MAX_STAGES} stages");
    }
    let epoch = std::env::var(EPOCH).ok().filter(|text| !text.is_empty());
    let epoch =
        epoch.map(|text| text.parse::<u32>().map_err(|_| anyhow!("{EPOCH}={text}: not seconds since the epoch")));
    let epoch = epoch.transpose()?.map(u64::from);
    let now = epoch.map_or_else(now_ns, |seconds| seconds * 1_000_000_000);
    let escape = file.parser_directives.escape.as_ref().map_or('\\', |escape| escape.value.value);
    let mut builder = Builder {
        store,
        args,
        talk,
        text: &text,
        called,
        file,
        escape,
        context: Rc::new(context),
        progress: Progress::new(talk.quiet),
        globals: PLATFORM.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        given: given(&args.build_arg)?,
        used: RefCell::default(),
        stages: RefCell::default(),
        images: RefCell::default(),
        merged: RefCell::default(),
        made: i64::try_from(now / 1_000_000_000).unwrap_or(i64::MAX),
        clamp: epoch.is_some(),
        created: clock::rfc3339(now),
        failed: Cell::new(false),
        guard: Cell::new(Some(guard)),
        signal,
    };
    builder.read_globals()?;
    let result = builder.all();
    let merged = builder.merged.take();
    // What the layers were merged into is of no use any more; if it cannot go now, `system prune` has it go.
    drop(builder);
    if let Err(error) = store.forget_merged(&merged) {
        tracing::warn!("{error}");
    }
    result
}

/// What `--build-arg` says; a name alone takes what it is here.
fn given(args: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut given = BTreeMap::new();
    for arg in args {
        match arg.split_once('=') {
            Some(("", _)) => bail!("--build-arg {arg}: the name is missing"),
            Some((name, value)) => drop(given.insert(name.to_owned(), value.to_owned())),
            None => drop(std::env::var(arg).ok().map(|value| given.insert(arg.clone(), value))),
        }
    }
    Ok(given)
}

impl Builder<'_> {
    fn all(&self) -> anyhow::Result<ImageInfo> {
        let last = self.file.stages().len() - 1;
        let target = match &self.args.target {
            None => last,
            Some(name) => {
                let found = self.stage_called(name, last + 1);
                found.ok_or_else(|| anyhow!("--target {name}: {} has no stage of this name", self.called))?
            }
        };
        let done = self.stage(target)?;
        let mut draft = done.draft.clone();
        for label in &self.args.label {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            Config::of(&mut draft.config).set_label(key, value);
        }
        if self.clamp || draft.config["created"].is_null() {
            draft.config["created"] = self.created.as_str().into();
        }
        let used = self.used.borrow();
        for name in self.given.keys().filter(|name| !used.contains(*name) && !stage::is_proxy(name)) {
            self.progress.warn(&format!("--build-arg {name}: no ARG asks for it"));
        }
        let names = match self.args.tag.is_empty() {
            true => vec![format!("build:{}", &draft.id().hex()[..12])],
            false => self.args.tag.clone(),
        };
        let step = self.progress.step("exporting the image");
        let image = self.store.publish(&draft, &names, &mut output::Progress::new(self.talk))?;
        step.say(&format!("writing image {}", image.id));
        names.iter().for_each(|name| step.say(&format!("naming to {name}")));
        step.done();
        Ok(image)
    }

    /// The ARGs before the first FROM.
    fn read_globals(&mut self) -> anyhow::Result<()> {
        let mut globals = std::mem::take(&mut self.globals);
        for arg in self.file.global_args() {
            let look_up = |name: &str| globals.get(name).cloned();
            let arguments = stage::arguments(&arg.arguments.value, self.escape, &look_up);
            for (name, default) in arguments.with_context(|| self.place(arg.arg.span.start))? {
                if let Some(value) = self.given(&name).or(default) {
                    globals.insert(name, value);
                }
            }
        }
        self.globals = globals;
        Ok(())
    }

    /// What `--build-arg` says of an ARG.
    fn given(&self, name: &str) -> Option<String> {
        self.used.borrow_mut().insert(name.to_owned());
        self.given.get(name).cloned()
    }

    /// Where the instruction stands that begins there, and what it says.
    fn place(&self, begin: usize) -> String {
        let line = dockerfile::line_of(self.text, begin);
        format!("{}:{line}: {}", self.called, dockerfile::shown(self.text, begin, self.escape))
    }

    /// What went wrong with the instruction that stands there: in another stage, if it has waited for one that says so.
    fn placed(&self, begin: usize, error: anyhow::Error) -> anyhow::Error {
        if self.failed.replace(true) { error } else { error.context(self.place(begin)) }
    }

    /// The stage of this name or number, if it comes before stage `end`.
    fn stage_called(&self, name: &str, end: usize) -> Option<usize> {
        let is_called = |stage: &parse_dockerfile::Stage<'_, '_>| {
            stage.from.as_.as_ref().is_some_and(|(_, own)| own.value.eq_ignore_ascii_case(name))
        };
        let by_name = self.file.stages().take(end).position(|stage| is_called(&stage));
        by_name.or_else(|| name.parse().ok().filter(|number| *number < end))
    }

    /// A stage, done.
    fn stage(&self, index: usize) -> anyhow::Result<Rc<Done>> {
        if let Some(done) = self.stages.borrow().get(&index) {
            return Ok(done.clone());
        }
        let done = Rc::new(Done { draft: self.make_stage(index)?, contents: RefCell::default() });
        self.stages.borrow_mut().insert(index, done.clone());
        Ok(done)
    }

    /// An image that is no stage: loaded, from a registry, or wherever its name leads.
    fn image(&self, name: &str) -> anyhow::Result<Rc<Done>> {
        if let Some(done) = self.images.borrow().get(name) {
            return Ok(done.clone());
        }
        let step = self.progress.step(&format!("image {name}"));
        let reference: ImageRef = name.parse().map_err(ImageError::from)?;
        let draft = match &reference {
            ImageRef::Rootfs(path) => {
                let contents = self.store.rootfs_contents(path, &mut output::Progress::new(self.talk))?;
                self.rootfs(name, Rc::new(contents))?
            }
            ImageRef::Name(whole) => {
                if self.args.pull {
                    self.pull(whole)?;
                }
                match self.store.draft_of(&reference, &mut ()) {
                    Err(ImageError::NotFound { .. }) => {
                        self.pull(whole)
                            .with_context(|| format!("image '{name}' is not here, and cannot be pulled"))?;
                        self.store.draft_of(&reference, &mut ())?
                    }
                    other => other?,
                }
            }
            _ => self.store.draft_of(&reference, &mut output::Progress::new(self.talk))?,
        };
        step.done();
        let done = Rc::new(Done { draft, contents: RefCell::default() });
        self.images.borrow_mut().insert(name.to_owned(), done.clone());
        Ok(done)
    }

    fn pull(&self, name: &str) -> anyhow::Result<()> {
        let name: RemoteName = name.parse()?;
        Registry::of(name)?.pull(self.store, &mut output::Progress::new(self.talk))?;
        Ok(())
    }

    /// An image of one layer with a root file system.
    fn rootfs(&self, name: &str, contents: Rc<Contents>) -> anyhow::Result<Draft> {
        let nothing = Contents::none();
        let mut plan = Plan::new(&nothing, Changed::default());
        plan.put(OfImage(contents).item(b"")?.into_iter().collect(), b"/", true)?;
        let mut draft = Draft::scratch();
        let (layer, _) = self.planned_layer(&draft, &plan)?;
        draft.config["created"] = layer.created().into();
        draft.add(json!({ "created": layer.created(), "created_by": format!("FROM {name}") }), Some(layer));
        Ok(draft)
    }

    /// The files of a stage or an image.
    fn contents(&self, done: &Done) -> anyhow::Result<Rc<Contents>> {
        let mut contents = done.contents.borrow_mut();
        if let Some(contents) = &*contents {
            return Ok(contents.clone());
        }
        let read = self.store.draft_contents(&done.draft, &mut output::Progress::new(self.talk))?;
        Ok(contents.insert(Rc::new(read)).clone())
    }

    /// A digest of what a layer on top of `draft` is made of.
    fn key(&self, draft: &Draft, of: &serde_json::Value) -> Digest {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        draft.diff_ids().for_each(|id| hasher.update(format!("{id}\n").as_bytes()));
        hasher.update(of.to_string().as_bytes());
        if self.clamp {
            hasher.update(format!("\n{}", self.made).as_bytes());
        }
        hasher.finish()
    }

    fn cached(&self, key: &Digest) -> anyhow::Result<Option<DraftLayer>> {
        Ok(if self.args.no_cache { None } else { self.store.cached(key)? })
    }

    /// The layer of a plan, and whether it was there.
    fn planned_layer(&self, draft: &Draft, plan: &Plan<'_>) -> anyhow::Result<(DraftLayer, bool)> {
        let key = |files: &Digest| self.key(draft, &json!({ "v": 1, "files": files.to_string() }));
        if let Some(layer) = self.cached(&key(&plan.digest()?))? {
            return Ok((layer, true));
        }
        let mut messages = plan.messages();
        let layer = self.store.draft_layer(&self.created, |out| archive::write(&mut || messages.next(), "", out))?;
        // Of what was written, which is the same unless somebody changes the context meanwhile.
        self.store.remember(&key(&messages.digest()), &layer)?;
        Ok((layer, false))
    }

    /// The signal that has come, or 0.
    fn interrupted(&self) -> u8 {
        u8::try_from(self.signal.load(Ordering::Relaxed)).unwrap_or_default()
    }

    /// Whoever attends to signals outside of a run; it is over with the run.
    fn take_guard(&self) -> anyhow::Result<Guard<Kept>> {
        match self.guard.take() {
            Some(guard) => Ok(guard),
            None => Guard::new().context("cannot wait for signals"),
        }
    }

    /// Signals end this program again.
    fn guard_again(&self) -> anyhow::Result<()> {
        self.guard.set(Some(Guard::new().context("cannot wait for signals")?));
        Ok(())
    }
}
