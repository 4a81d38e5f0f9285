//! A member's place in a pod that runs: two disks of its microVM, two ports of its guest, one number.
//!
//! ```text
//! lock place-N ─► listen at its ports ─► pod's owner: Member N ─► guest: keeper, init ─► it connects ─► files behind the disks ─► Start
//!                                             └─ the answer to that stays out for as long as the place is used
//! ```
//!
//! Files are given to the microVM's process as descriptors: it opens none. That of a writable layer is locked (flock(2)) with the
//! descriptor, so it is nobody else's until the microVM has let go of it, whoever is killed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use guest_images::Layer;
use guest_protocol::files::Helper;
use guest_protocol::{CONTROL_PORT, STREAM_PORT, port_at};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use super::Running;
use crate::attend::client::{AskError, Asking};
use crate::attend::{Answer, Exec, Order};
use crate::container::LAYERS_CAPACITY;
use crate::control::{Control, ControlError};
use crate::failure::sanitize;
use crate::monitor::MonitorError;
use crate::owner::ENDED;
use crate::session::Session;
use crate::upper;

/// How long a place may take to be free of who had it before, and a file of the microVM that had it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most files behind a disk: as many descriptors come with one request (docs/control-api.md).
const MOST_FILES: usize = 64;
/// Between two looks at that.
const INTERVAL: Duration = Duration::from_millis(50);

/// The disk for layers of a place: its id, and what it is with nothing behind it.
pub fn layers(place: u8) -> (String, Value) {
    (format!("layers_{place}"), json!({ "is_read_only": true, "capacity": LAYERS_CAPACITY }))
}

/// The same of the one for a writable layer.
pub fn upper(place: u8) -> (String, Value) {
    (format!("upper_{place}"), json!({ "is_read_only": false, "capacity": upper::BYTES }))
}

/// Takes the files of a place away from its disks. Nothing in the guest uses them any more.
///
/// # Errors
/// As [`Control::call`].
pub fn vacate(control: &Control, place: u8) -> Result<(), ControlError> {
    let patch = |id: &str, body: Value| control.call("PATCH", &format!("/drives/{id}"), &body).map(drop);
    let ((layers, _), (upper, empty)) = (layers(place), upper(place));
    patch(&layers, json!({ "drive_id": layers, "extents": null }))?;
    patch(&upper, json!({ "drive_id": upper, "path_on_host": null, "capacity": empty["capacity"] }))
}

/// One that somebody has.
#[derive(Debug)]
pub struct Place {
    pod: Running,
    number: u8,
    /// Where its guest connects.
    pub session: Session,
    /// Its end is that of the place's use, or of the pod.
    asking: Asking,
    _lock: File,
}

/// What came of asking for one.
enum Asked {
    Has(Box<Place>),
    /// One is about to be free.
    Later,
    /// The pod has ended meanwhile.
    Gone,
    Full,
}

impl Place {
    /// Has a place in the pod that `word` means, which is started if it does not run.
    ///
    /// # Errors
    /// There is no such pod, or no place in it.
    pub fn take(word: &str) -> anyhow::Result<Box<Self>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let pod = super::start(word)?;
            match Self::ask(&pod)? {
                Asked::Has(place) => return Ok(place),
                Asked::Later | Asked::Gone if Instant::now() < deadline => thread::sleep(INTERVAL),
                Asked::Later | Asked::Gone => {
                    return Err(anyhow!("pod {}: it has ended, or a place in it is not let go of", pod.name));
                }
                Asked::Full => {
                    let Running { name, places, .. } = pod;
                    return Err(anyhow!(
                        "pod {name}: all of its {places} places are taken; `pod create --places` makes one with more"
                    ));
                }
            }
        }
    }

    fn ask(pod: &Running) -> anyhow::Result<Asked> {
        let mut otherwise = Asked::Full;
        for number in 0..pod.places {
            let Some(lock) = lock(&pod.directory.join(format!("place-{number}")))? else { continue };
            let uds = pod.directory.join("vsock");
            for port in [CONTROL_PORT, STREAM_PORT] {
                // Of somebody who was killed: who listens there has the lock.
                let _ = fs::remove_file(format!("{}_{}", uds.display(), port_at(number, port)));
            }
            let session = match Session::listen_at(&uds, Some(number)) {
                Ok(session) => session,
                Err(_) if !pod.directory.exists() => return Ok(Asked::Gone),
                Err(error) => return Err(error.into()),
            };
            let helper = Some(Helper::Member { place: number });
            let order = Order::Exec(Exec { helper, detached: true, ..Exec::default() });
            let asked =
                Asking::ask(&pod.directory, &pod.name, &order).and_then(|mut asking| Ok((asking.next()?, asking)));
            match asked {
                Ok((Answer::Streams(_), asking)) => {
                    return Ok(Asked::Has(Box::new(Place { pod: pod.clone(), number, session, asking, _lock: lock })));
                }
                Ok((Answer::Done(value), _)) if value["occupied"] == true => otherwise = Asked::Later,
                Ok((Answer::Done(value), _)) => {
                    let why = value["failed"].as_str().map_or_else(|| "no reason was given".into(), sanitize);
                    return Err(anyhow!("pod {}: {why}", pod.name));
                }
                Ok((Answer::Error(text), _)) if text == ENDED => return Ok(Asked::Gone),
                Ok((Answer::Progress(text) | Answer::Error(text), _)) => {
                    return Err(anyhow!("pod {}: {}", pod.name, sanitize(&text)));
                }
                Err(AskError::Gone(_)) => return Ok(Asked::Gone),
                Err(error) => return Err(error.into()),
            }
        }
        // Without it there are no locks, either.
        Ok(if pod.directory.exists() { otherwise } else { Asked::Gone })
    }

    /// The pod.
    pub fn pod(&self) -> &Running {
        &self.pod
    }

    /// Readable when the place, or its pod, has come to its end.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.asking.as_fd()
    }

    /// Puts a container's files behind its disks, whose guest has connected: until then the place may have been somebody else's.
    ///
    /// # Errors
    /// One of them is not there, or used; the microVM does not take them.
    pub fn furnish(&self, files: &[Layer], writable: Option<&Path>) -> anyhow::Result<()> {
        if files.len() > MOST_FILES {
            return Err(anyhow!(
                "pod {}: the image is made of {} files, and {MOST_FILES} are the most in a pod; build it with fewer layers, or run it in a microVM of its own",
                self.pod.name,
                files.len()
            ));
        }
        let control = Control::at(&self.pod.directory.join("api"));
        let give = |id: &str, body: Value, files: &[OwnedFd]| {
            control
                .call_giving("PATCH", &format!("/drives/{id}"), &body, files)
                .with_context(|| format!("pod {}", self.pod.name))
        };
        let opened =
            files.iter().map(|layer| File::open(&layer.path).with_context(|| layer.path.display().to_string()));
        let opened = opened.map(|file| file.map(OwnedFd::from)).collect::<anyhow::Result<Vec<_>>>()?;
        let extents: Vec<&Path> = files.iter().map(|layer| layer.path.as_path()).collect();
        let (id, _) = layers(self.number);
        if !extents.is_empty() {
            give(&id, json!({ "drive_id": id, "extents": extents }), &opened)?;
        }
        if let Some(path) = writable {
            let (id, _) = upper(self.number);
            let file = upper::wait_for(path, PATIENCE)?;
            give(&id, json!({ "drive_id": id, "path_on_host": path, "capacity": null }), &[file.into()])?;
        }
        Ok(())
    }

    /// Waits until nothing of the container is in the guest any more. What it has written is in its file then.
    pub fn leave(mut self: Box<Self>) {
        // Nobody else connects there.
        drop(self.session);
        let _ = self.asking.be_patient(Some(PATIENCE));
        while matches!(self.asking.next(), Ok(Answer::Progress(_) | Answer::Streams(_))) {}
    }

    /// Why the place has come to its end before its container.
    pub fn why(mut self: Box<Self>) -> anyhow::Error {
        let name = self.pod.name.clone();
        match self.asking.next() {
            Ok(Answer::Done(_)) => {
                anyhow!("pod {name}: place {} cannot be used, or its guest's init has failed", self.number)
            }
            Ok(Answer::Progress(text) | Answer::Error(text)) => {
                MonitorError::Lost(format!("of its pod {name}: {}", sanitize(&text))).into()
            }
            Ok(Answer::Streams(_)) | Err(_) => MonitorError::Lost(format!("that of its pod {name}")).into(),
        }
    }
}

/// The lock of a place, if nobody has it.
fn lock(path: &Path) -> anyhow::Result<Option<File>> {
    let file = match OpenOptions::new().write(true).create(true).truncate(false).open(path) {
        // With the pod, which has ended: who asks finds that out.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.with_context(|| path.display().to_string())?,
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(io::Error::from(error)).with_context(|| path.display().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_one_processs_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("place-0");
        let held = lock(&path).unwrap();
        assert!(held.is_some() && lock(&path).unwrap().is_none());
        drop(held);
        assert!(lock(&path).unwrap().is_some());
        assert!(lock(&dir.path().join("gone/place-0")).unwrap().is_none());
    }

    #[test]
    fn a_writable_layer_is_nobody_elses_while_a_descriptor_of_it_is_somewhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upper");
        File::create(&path).unwrap();
        let file = upper::wait_for(&path, Duration::ZERO).unwrap();
        let given = file.try_clone().unwrap();
        drop(file);
        let error = upper::wait_for(&path, Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("pod still uses it"), "{error}");
        drop(given);
        upper::wait_for(&path, Duration::ZERO).unwrap();
    }

    #[test]
    fn disks_come_in_pairs_that_are_empty() {
        let drives = crate::pods::drives(2);
        let ids: Vec<&str> =
            drives.as_array().unwrap().iter().map(|drive| drive["drive_id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["layers_0", "upper_0", "layers_1", "upper_1"]);
        let read_only: Vec<_> = drives.as_array().unwrap().iter().map(|drive| drive["is_read_only"] == true).collect();
        assert_eq!(read_only, [true, false, true, false]);
    }
}
