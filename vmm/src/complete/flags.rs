//! Bits of RFLAGS, the control registers and EFER (SDM vol. 1, 3.4.3; vol. 3, 2.5 and 2.2.1).

pub const CF: u64 = 1;
pub const PF: u64 = 1 << 2;
pub const AF: u64 = 1 << 4;
pub const ZF: u64 = 1 << 6;
pub const SF: u64 = 1 << 7;
pub const OF: u64 = 1 << 11;
pub const RF: u64 = 1 << 16;
pub const AC: u64 = 1 << 18;

pub const CR0_MP: u64 = 1 << 1;
pub const CR0_EM: u64 = 1 << 2;
pub const CR0_TS: u64 = 1 << 3;
pub const CR0_WP: u64 = 1 << 16;
pub const CR0_PG: u64 = 1 << 31;

pub const CR4_OSFXSR: u64 = 1 << 9;
pub const CR4_LA57: u64 = 1 << 12;
pub const CR4_OSXSAVE: u64 = 1 << 18;
pub const CR4_SMAP: u64 = 1 << 21;

pub const EFER_LMA: u64 = 1 << 10;
pub const EFER_NXE: u64 = 1 << 11;
