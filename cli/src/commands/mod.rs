//! The verbs, one module each (those on images share one, and those that do something with containers).

pub mod attach;
pub mod bench;
pub mod boot;
pub mod commit;
pub mod compare;
pub mod containers;
pub mod copy;
pub mod doctor;
pub mod events;
pub mod exec;
pub mod history;
pub mod images;
pub mod inspect;
pub mod logs;
pub mod look;
mod measuring;
pub mod ps;
pub mod registry;
pub mod restore;
mod results;
pub mod run;
pub mod snapshots;
pub mod stats;
pub mod system;
pub mod update;
pub mod vmm;
pub mod why;
