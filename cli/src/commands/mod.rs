//! The verbs, one module each (those on images share one).

pub mod bench;
pub mod boot;
pub mod doctor;
pub mod images;
pub mod restore;
pub mod run;
pub mod snapshots;
pub mod system;
pub mod vmm;
