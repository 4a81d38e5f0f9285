//! Volumes whose names are made up: each is one container's, and goes with it if that was run with `--rm`.
//!
//! ```text
//! <store>/volumes/.passing/NAME    the volume goes with a container: that whose id is in here, or with whoever has the lock, who makes one
//! ```
//!
//! The mark is there before the volume, and gone after it: whatever is killed in between, the next command finds it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use super::VolumeFlag;
use super::named::{Locked, NamedVolumes, VolumesError, io_error};
use crate::containers::Id;

/// The label by which docker knows such volumes, as it is here.
pub const LABEL: &str = "com.docker.volume.anonymous";
/// Where the marks are, beside the volumes.
const PASSING: &str = ".passing";
/// Random bytes in a name.
const RANDOM: usize = 32;

/// A name that nothing else has, as docker's.
pub fn name() -> io::Result<String> {
    let mut bytes = [0; RANDOM];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    // As long as a name may be.
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()[1..].to_owned())
}

impl NamedVolumes {
    fn marks(&self) -> PathBuf {
        self.dir().join(PASSING)
    }

    /// Volumes that have been left by the containers that they were to go with; or they are just being made.
    pub(super) fn left(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.marks()) else { return Vec::new() };
        let left = |entry: fs::DirEntry| {
            let id = fs::read_to_string(entry.path()).ok()?.parse::<Id>().ok();
            (!id.is_some_and(|id| self.has_container(&id))).then(|| entry.file_name().into_string().ok())?
        };
        entries.flatten().filter_map(left).collect()
    }
}

impl Locked {
    /// Has a volume, which is yet to be made, go with the container that is made.
    pub fn let_pass(&self, flag: &VolumeFlag) -> Result<(), VolumesError> {
        let Some(name) = flag.name() else { return Ok(()) };
        let dir = self.volumes().marks();
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(io_error(&dir))?;
        let path = dir.join(name);
        fs::write(&path, "").map_err(io_error(&path))
    }

    /// The container is there.
    pub fn pass_with(&self, id: &Id, flags: &[VolumeFlag]) -> Result<(), VolumesError> {
        for name in flags.iter().filter(|flag| flag.is_anonymous()).filter_map(VolumeFlag::name) {
            let path = self.volumes().marks().join(name);
            fs::write(&path, id.as_str()).map_err(io_error(&path))?;
        }
        Ok(())
    }

    /// Removes those that have been left.
    pub(super) fn remove_left(&self) -> Result<(), VolumesError> {
        for name in self.volumes().left() {
            match self.remove(&name) {
                // Whoever was given it by its name keeps it.
                Ok(()) | Err(VolumesError::NotFound(_) | VolumesError::BadName(_) | VolumesError::InUse { .. }) => {}
                Err(error) => return Err(error),
            }
            let path = self.volumes().marks().join(&name);
            fs::remove_file(&path).map_err(io_error(&path))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::containers::Containers;
    use crate::containers::record::tests::record;

    #[test]
    fn a_name_that_is_made_up_is_one() {
        super::super::named::check_name(&name().unwrap()).unwrap();
    }

    /// Whatever was killed when.
    #[test]
    fn what_goes_with_a_container_goes_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = NamedVolumes::of(dir.path()).unwrap();
        let flag = || {
            let mut flag: VolumeFlag = "/data".parse().unwrap();
            flag.source = name().unwrap().into();
            flag
        };
        let made = |flag: &VolumeFlag| {
            let locked = volumes.lock().unwrap();
            locked.let_pass(flag).unwrap();
            locked.create(flag.name().unwrap(), BTreeMap::new()).unwrap();
            locked
        };
        let names = || volumes.list().unwrap().into_iter().map(|volume| volume.name).collect::<Vec<_>>();
        let containers = Containers::of(dir.path()).unwrap();
        let container = |flags: &[VolumeFlag]| {
            let make = |id| {
                let mut record = record(&id);
                record.flags.volume = flags.to_vec();
                record
            };
            let (_, held, made) = containers.create(None, make, |_, _| Ok(())).unwrap();
            held.stays();
            made.id
        };

        let (lost, kept) = (flag(), flag());
        let locked = made(&lost);
        volumes.sweep().unwrap();
        assert_eq!(names().len(), 1, "somebody makes it");
        drop(locked);
        volumes.sweep().unwrap();
        assert!(names().is_empty(), "whoever made it was killed");

        let locked = made(&kept);
        let id = container(std::slice::from_ref(&kept));
        locked.pass_with(&id, std::slice::from_ref(&kept)).unwrap();
        drop(locked);
        volumes.sweep().unwrap();
        assert_eq!(names().len(), 1, "its container is there");
        let other = container(std::slice::from_ref(&kept));
        containers.remove(id.as_str()).unwrap();
        volumes.sweep().unwrap();
        assert_eq!((names().len(), volumes.left().len()), (1, 0), "another has it, and keeps it");
        containers.remove(other.as_str()).unwrap();
        volumes.sweep().unwrap();
        assert_eq!(names().len(), 1);

        let gone = flag();
        let locked = made(&gone);
        let id = container(std::slice::from_ref(&gone));
        locked.pass_with(&id, std::slice::from_ref(&gone)).unwrap();
        drop(locked);
        containers.remove(id.as_str()).unwrap();
        volumes.sweep().unwrap();
        assert_eq!((names().len(), volumes.left().len()), (1, 0));
    }
}
