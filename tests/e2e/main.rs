//! The built binary, driven as a user drives it, with real guests.
//!
//! | module | what it holds |
//! |---|---|
//! | [`adversary`] | a hostile guest: attacks on every device and port |
//! | [`attach`] | clients at a container's own process |
//! | [`audit`] | what a workload reaches, by its own attempts and by this host's /proc |
//! | [`container`] | what a command finds inside, and what comes out |
//! | [`ending`] | signals, ^C and SIGKILL at any moment; nothing stays behind |
//! | [`exec`] | other commands in a container that runs |
//! | [`filesystem`] | a file system that a guest makes, and a share under a test program |
//! | [`files`] | files in and out of containers, and images of them |
//! | [`fifty`] | fifty containers at once, and others that are killed: the census before and after |
//! | [`frozen`] | clones of a container that is busy |
//! | [`images`] | the store of images without any guest: names, history, archives |
//! | [`interactive`] | terminals |
//! | [`killed`] | SIGKILL at each call that saves or removes a snapshot |
//! | [`lifecycle`] | containers without their CLI: run -d, ps, logs, stop, start, rm |
//! | [`looking`] | what containers use, what has become of them, and why |
//! | [`many`] | several vCPUs, much memory, vector registers, ten at once |
//! | [`memory`] | RAM of machines that go on from a snapshot |
//! | [`mixed`] | SIGKILL at random moments of a mixed workload |
//! | [`net`] | guests on a network |
//! | [`refused`] | every verb with what it cannot do, and on a full disk |
//! | [`registry`] | images from and to a registry on this host |
//! | [`restarts`] | containers that are started again |
//! | [`paused`] | containers that stand still |
//! | [`pods`] | several containers in one guest |
//! | [`bad_input`] | one line, the right code, nothing left |
//! | [`bare`] | `bulkhead boot` |
//! | [`booted`] | no tests: a Linux that bare machines go on from |
//! | [`build`] | images from Dockerfiles: RUN in guests, and builds that end early |
//! | [`compare`] | containers and microVMs side by side |
//! | [`conformance`] | docker's habits, here and with another engine |
//! | [`confined`] | what threads of a microVM's process may still do |
//! | [`contained`] | Bulkhead inside a container of runc |
//! | [`control`] | `bulkhead vmm`: configuration files and the control socket |
//! | [`disk`] | a writable disk: what the guest was promised, in the file on the host |
//! | [`load`] | a guest under load, saved and restored again and again |
//! | [`scripted`] | microVMs in which Debian's programs use disks and memory |
//! | [`services`] | nginx, Redis and PostgreSQL, from Debian's packages to podman |
//! | [`settings`] | what a container has beside its files |
//! | [`snapshots`] | named snapshots: their tree, restore, rollback, warm images |
//! | [`tracer`] | no tests: what kills at a call |
//! | [`updates`] | what a container may take, changed while it runs and when it has ended |
//! | [`verbs`] | images, doctor, bench |
//! | [`volumes`] | directories of the host in a container, and named volumes |
//!
//! A boot costs seconds on a software-nested host, so each guest answers several questions.

mod adversary;
mod attach;
mod audit;
mod bad_input;
mod bare;
mod booted;
mod build;
mod compare;
mod confined;
mod conformance;
mod contained;
mod container;
mod control;
mod disk;
mod ending;
mod exec;
mod fifty;
mod files;
mod filesystem;
mod frozen;
mod images;
mod interactive;
mod isolation;
mod killed;
mod lifecycle;
mod load;
mod looking;
mod many;
mod memory;
mod mixed;
mod net;
mod networks;
mod paused;
mod pods;
mod refused;
mod registry;
mod restarts;
mod scripted;
mod services;
mod settings;
mod snapshots;
mod tracer;
mod updates;
mod verbs;
mod volumes;
mod warm;

/// The lab of a test, or the end of a test that cannot run here, or is left to the one host of the two on which it costs less:
/// `on hardware` ([`tests::Lab::leaves_to_hardware`]), `on the machine` ([`tests::Lab::leaves_to_machine`]).
macro_rules! lab {
    ($name:expr) => {
        match tests::Lab::open($name) {
            Some(lab) => lab,
            None => return,
        }
    };
    ($name:expr, on hardware) => {
        match $crate::lab!($name) {
            lab if lab.leaves_to_hardware($name) => return,
            lab => lab,
        }
    };
    ($name:expr, on the machine) => {
        match $crate::lab!($name) {
            lab if lab.leaves_to_machine($name) => return,
            lab => lab,
        }
    };
}
pub(crate) use lab;
