//! The life of a machine's process: a configuration comes from a file or over the control socket, the machine runs, and
//! its end is the session's.
//!
//! ```text
//!   configuration ──────────────┐                          ┌─ the machine ends ─► reason
//!                               ▼                          │
//!   control socket ─ waits ─► builds ─► the machine's loop ┼─ signal ───────────► reason, signal
//!        ▲                      │       (devices, console, │
//!        └── it cannot be built ┘        control, signals) └─ "stop" ───────────► reason
//! ```
//!
//! Each attempt to build gets an event loop of its own, on which the control socket and the signals are, too: what a
//! failed one has subscribed goes with it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventManager, SubscriberOps};

use crate::api::draft::DraftError;
use crate::api::http::Response;
use crate::api::live::Live;
use crate::api::metrics::MetricsError;
use crate::api::{Controller, Draft, Server};
use crate::config::{SerialConfig, VmConfig};
use crate::events::{Event, ExitReason, Phase};
use crate::host;
use crate::machine::{Ahead, Machine, Remains, Subscriber, VmmError};
use crate::sandbox;
use crate::signals::Signals;

/// What a session is to do.
#[derive(Default)]
pub struct Options {
    /// What the machine is called.
    pub id: String,
    /// Where the control socket is to be.
    pub socket: Option<PathBuf>,
    /// Where KVM's CPUID leaves are kept, see [`VmConfig::cpuid_cache`].
    pub cpuid_cache: Option<PathBuf>,
    /// What is known of the machine.
    pub draft: Draft,
    /// Record its devices' queues into this directory, see [`Handle::record`](crate::Handle::record).
    pub record: Option<PathBuf>,
    /// Build and run it at once; otherwise a client of the control socket does.
    pub start: bool,
    /// How this process is confined once the machine runs; not at all if none.
    pub sandbox: Option<sandbox::Wanted>,
    /// Called when the machine's console is about to be this process's stdin and stdout.
    pub on_stdio: Option<Box<dyn FnOnce()>>,
}

/// A session that failed.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The control socket cannot be had.
    #[error("control socket {path}: {source}")]
    Socket {
        /// Where it was to be.
        path: PathBuf,
        /// The host's answer.
        source: std::io::Error,
    },
    /// Signals cannot be waited for.
    #[error("signals: {0}")]
    Signals(std::io::Error),
    /// The configuration cannot be built.
    #[error(transparent)]
    Draft(#[from] DraftError),
    /// The metrics file.
    #[error("metrics: {0}")]
    Metrics(#[from] MetricsError),
    /// The machine could not be built, or broke.
    #[error(transparent)]
    Vmm(#[from] VmmError),
}

/// How a session ended.
pub struct Ended {
    /// How the machine ended; [`ExitReason::Stopped`] if there was none.
    pub reason: ExitReason,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Files of recorded queues. They are whole once the remains are gone.
    pub recorded: Vec<PathBuf>,
    /// What is left of the machine, if there was one.
    pub remains: Option<Remains>,
}

/// What of a session begins before it is known what it is to do.
pub struct Beginning {
    signals: Arc<Mutex<Signals>>,
    ahead: Option<Ahead>,
}

/// Begins one, before other threads start. It is `attended`, if somebody else sees to its end. Signals that ask for that, and may have been
/// sent to a whole group of processes (a service that is stopped), are theirs: a guest is told of them before it ends. All are blocked from
/// now on. If it `makes` a machine at once, in a sandbox, that is begun, too.
///
/// # Errors
/// [`SessionError::Signals`].
pub fn begin(attended: bool, makes: bool) -> Result<Beginning, SessionError> {
    let signals = Signals::new(!attended, Box::new(|| ())).map_err(SessionError::Signals)?;
    Ok(Beginning { signals: Arc::new(Mutex::new(signals)), ahead: makes.then(Ahead::start).flatten() })
}

/// Runs it on this thread, to its end.
///
/// # Errors
/// [`SessionError`].
pub fn run(begun: Beginning, options: Options, on_event: &mut dyn FnMut(Event)) -> Result<Ended, SessionError> {
    let Beginning { signals, ahead } = begun;
    let mut controller = Controller::new(options.id, options.draft, host::memory_mib())?;
    if options.start {
        controller.start()?;
    }
    let control = match options.socket {
        None => Control::Alone(Box::new(controller)),
        Some(path) => {
            let server = Server::bind(path.clone(), controller);
            Control::Served(Arc::new(Mutex::new(server.map_err(|source| SessionError::Socket { path, source })?)))
        }
    };
    let Options { cpuid_cache, on_stdio, sandbox, record, .. } = options;
    let mut session = Session { control, signals, cpuid_cache, sandbox, ahead, on_stdio, record, recorded: Vec::new() };
    let ended = session.run(options.start, on_event);
    // Without effect where a machine has run, at whose end it was closed.
    session.control.close();
    let signal = lock(&session.signals).came();
    let (reason, remains) = ended?;
    Ok(Ended { reason, signal, recorded: session.recorded, remains })
}

/// Who makes the machine: a file alone, or clients.
enum Control {
    Alone(Box<Controller>),
    Served(Arc<Mutex<Server<Controller>>>),
}

impl Control {
    fn with<T>(&mut self, work: impl FnOnce(&mut Controller) -> T) -> T {
        match self {
            Control::Alone(controller) => work(controller),
            Control::Served(server) => work(lock(server).handler_mut()),
        }
    }

    /// Lets nobody connect any more, once the client that is being answered has been.
    fn close(&self) {
        if let Control::Served(server) = self {
            lock(server).close();
        }
    }

    /// Answers the client that waits for its machine, which could not be had.
    fn answer(&self, response: &Response) {
        if let Control::Served(server) = self {
            lock(server).answer(response);
        }
    }

    /// Has the event loop answer the client that waits for its machine, on whose first vCPU's thread this is.
    fn machine_runs(&self) {
        if let Control::Served(server) = self {
            lock(server).answer_soon(Response::done());
        }
    }
}

struct Session {
    control: Control,
    signals: Arc<Mutex<Signals>>,
    cpuid_cache: Option<PathBuf>,
    sandbox: Option<sandbox::Wanted>,
    /// For its first machine.
    ahead: Option<Ahead>,
    on_stdio: Option<Box<dyn FnOnce()>>,
    record: Option<PathBuf>,
    recorded: Vec<PathBuf>,
}

impl Session {
    /// `insist`: a machine that cannot be built at first is the end.
    fn run(
        &mut self,
        insist: bool,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<(ExitReason, Option<Remains>), VmmError> {
        let mut insist = insist;
        loop {
            let Some(config) = self.wait_for_launch()? else {
                return Ok((ExitReason::Stopped, None));
            };
            match self.build(&config, on_event) {
                Ok(machine) => {
                    let (reason, remains) = self.live(machine, config, on_event)?;
                    return Ok((reason, Some(remains)));
                }
                Err(error) if insist => return Err(error),
                Err(error) => self.refuse(&error),
            }
            insist = false;
        }
    }

    fn refuse(&mut self, error: &VmmError) {
        self.control.with(Controller::failed);
        self.control.answer(&Response::fault(400, &error.to_string()));
    }

    /// An event loop with everything on it that there is besides a machine.
    fn event_loop(&self) -> Result<EventManager<Subscriber>, VmmError> {
        let mut manager: EventManager<Subscriber> = EventManager::new()?;
        manager.add_subscriber(self.signals.clone());
        if let Control::Served(server) = &self.control {
            manager.add_subscriber(server.clone());
        }
        Ok(manager)
    }

    /// The machine that is wanted next; none if the end is wanted instead.
    fn wait_for_launch(&mut self) -> Result<Option<VmConfig>, VmmError> {
        // A machine that a file describes is waited for by nobody.
        if let Some(launch) = self.control.with(Controller::take_launch) {
            return Ok(Some(launch.config));
        }
        let mut manager = self.event_loop()?;
        loop {
            if lock(&self.signals).came().is_some() || self.control.with(|controller| controller.wants_stop()) {
                return Ok(None);
            }
            if let Some(launch) = self.control.with(Controller::take_launch) {
                return Ok(Some(launch.config));
            }
            match manager.run() {
                Ok(_) => {}
                Err(event_manager::Error::Epoll(e)) if e.errno() == libc::EINTR => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn build(&mut self, config: &VmConfig, on_event: &mut dyn FnMut(Event)) -> Result<Machine, VmmError> {
        let config = VmConfig { cpuid_cache: self.cpuid_cache.clone(), ..config.clone() };
        if let Some(wanted) = &self.sandbox {
            sandbox::prepare(wanted.mode);
        }
        let requests = matches!(self.control, Control::Served(_));
        let sandbox = self.sandbox.clone().map(|wanted| sandbox::Wanted { requests, ..wanted });
        let machine = Machine::build_on(self.event_loop()?, &config, None, sandbox, self.ahead.take(), on_event)?;
        if let Some(directory) = &self.record {
            self.recorded =
                machine.handle().record(directory).map_err(|source| VmmError::Io { what: "queue trace", source })?;
        }
        Ok(machine)
    }

    /// Runs the machine to its end.
    fn live(
        &mut self,
        mut machine: Machine,
        config: VmConfig,
        on_event: &mut dyn FnMut(Event),
    ) -> Result<(ExitReason, Remains), VmmError> {
        let handle = machine.handle();
        if let (SerialConfig::Stdio, Some(on_stdio)) = (&config.serial, self.on_stdio.take()) {
            on_stdio();
        }
        {
            let mut signals = lock(&self.signals);
            let handle = handle.clone();
            signals.set_action(Box::new(move || handle.stop()));
        }
        self.control.with(|controller| controller.started(Box::new(Live::new(handle, config))));
        if let Control::Served(server) = &self.control {
            let server = server.clone();
            machine.at_end(Box::new(move || lock(&server).close()));
        }
        let control = &self.control;
        let result = machine.run_to_end(&mut |event| {
            if matches!(event, Event::Phase { phase: Phase::Run, .. }) {
                control.machine_runs();
            }
            on_event(event);
        });
        if let Err(error) = &result {
            // Without effect once the machine has run: its client has been answered.
            control.answer(&Response::fault(400, &error.to_string()));
        }
        result
    }
}

/// Nothing that panics leaves these half-changed.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
