//! bzImage kernels.

use linux_loader::loader::bootparam::boot_params;
use vm_memory::{Bytes, GuestAddress};

use super::{boot, build::*, refusal};
use crate::{CpuMode, Protocol};

#[test]
fn a_kernel_is_entered_in_64_bit_mode_with_its_own_header() {
    let (mem, state) = boot(&bzimage(), Protocol::Auto, 64).unwrap();
    assert_eq!((state.rip, state.rsi), (PREFERRED + 0x200, 0x7000));
    assert!(matches!(state.mode, CpuMode::Long { .. }));
    let params: boot_params = mem.read_obj(GuestAddress(0x7000)).unwrap();
    let header = params.hdr;
    assert_eq!(({ header.setup_sects }, { header.version }, { header.xloadflags }), (SETUP_SECTS, 0x20f, 0x3f));
    assert_eq!(({ header.handover_offset }, { header.kernel_info_offset }), (0x1234, 0x5678));
    assert_eq!(({ header.type_of_loader }, { header.code32_start }), (0xff, PREFERRED as u32));
    assert_eq!({ header.cmdline_size }, CMDLINE_SIZE);
    let mut payload = vec![0; PAYLOAD_LEN + 1];
    mem.read_slice(&mut payload, GuestAddress(PREFERRED)).unwrap();
    assert!(payload[..PAYLOAD_LEN].iter().all(|byte| *byte == 0x90) && payload[PAYLOAD_LEN] == 0);
}

#[test]
fn a_header_ends_where_its_jump_says() {
    let mut file = bzimage();
    set(&mut file, 0x201, &[0x66]);
    let (mem, _) = boot(&file, Protocol::Auto, 64).unwrap();
    let params: boot_params = mem.read_obj(GuestAddress(0x7000)).unwrap();
    assert_eq!(({ params.hdr.handover_offset }, { params.hdr.kernel_info_offset }), (0x1234, 0));
}

#[test]
fn no_setup_sectors_mean_four() {
    let mut file = bzimage();
    set(&mut file, 0x1f1, &[0]);
    assert!(refusal(&file, Protocol::Auto).starts_with("kernel k: setup header: setup_sects 4 and syssize 0x40 want"));
    file.splice(0x600..0x600, [0; 0x400]);
    let (mem, _) = boot(&file, Protocol::Auto, 64).unwrap();
    assert_eq!(mem.read_obj::<u8>(GuestAddress(PREFERRED)).unwrap(), 0x90);
}

#[test]
fn a_relocatable_kernel_is_aligned_and_another_is_not() {
    let mut file = bzimage();
    set(&mut file, 0x258, &(PREFERRED + 0x1000).to_le_bytes());
    assert_eq!(boot(&file, Protocol::Auto, 64).unwrap().1.rip, PREFERRED + 0x20_0200);
    set(&mut file, 0x234, &[0]);
    set(&mut file, 0x230, &[0; 4]);
    assert_eq!(boot(&file, Protocol::Auto, 64).unwrap().1.rip, PREFERRED + 0x1200);
}

#[test]
fn group_9_every_malformed_kernel_is_told_which_field_is_wrong() {
    let changed = |at: usize, bytes: &[u8]| {
        let mut file = bzimage();
        set(&mut file, at, bytes);
        file
    };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (bzimage()[..0x206].to_vec(), "it ends at 0x268, and the file has 0x206 bytes"),
        (bzimage()[..0x26b].to_vec(), "it ends at 0x26c, and the file has 0x26b bytes"),
        (bzimage()[..0x600].to_vec(), "setup_sects 2 and syssize 0x40 want 0x9f1 bytes, and the file has 0x600"),
        (bzimage()[..0x9f0].to_vec(), "setup_sects 2 and syssize 0x40 want 0x9f1 bytes, and the file has 0x9f0"),
        (changed(0x1f1, &[0xff]), "setup_sects 255 and"),
        (changed(0x1f4, &[0xff; 4]), "setup_sects 2 and syssize 0xffffffff want"),
        (changed(0x1fe, &[0]), "boot_flag is 0xaa00, expected 0xaa55"),
        (changed(0x206, &[0x0b, 2]), "version is 0x20b, expected 0x20c or later"),
        (changed(0x201, &[0x65]), "jump (end of the header) is 0x65, expected 0x66 or more"),
        (changed(0x211, &[0]), "loadflags is 0x0, expected bit 0 set"),
        (changed(0x236, &[2, 0]), "xloadflags is 0x2, expected bit 0 set (a kernel with a 64-bit entry)"),
        (changed(0x230, &[0; 4]), "kernel_alignment is 0x0, expected a power of two"),
        (changed(0x230, &[3, 0, 0, 0]), "kernel_alignment is 0x3, expected a power of two"),
        (changed(0x238, &[0; 4]), "cmdline_size is 0x0"),
        (changed(0x260, &[0xff, 3, 0, 0]), "init_size 0x3ff is less than the kernel's 0x400 bytes"),
        (changed(0x260, &[0xff; 4]), "pref_address 0x1000000 with init_size 0xffffffff lies over the device hole"),
        (changed(0x263, &[4]), "pref_address 0x1000000 with init_size 0x4200000 does not fit the guest's RAM"),
        (changed(0x258, &[0; 8]), "pref_address 0x0 with init_size 0x200000 lies over the low area"),
        (changed(0x258, &[0xff; 8]), "pref_address 0xffffffffffffffff with init_size 0x200000 does not fit"),
        (changed(0x25b, &[0xc0]), "pref_address 0xc0000000 with init_size 0x200000 lies over the device hole"),
    ];
    for (file, expected) in cases {
        let said = refusal(&file, Protocol::Auto);
        let expected = format!("kernel k: setup header: {expected}");
        assert!(said.starts_with(&expected), "expected {expected:?}, got {said:?}");
    }
}

#[test]
fn pvh_is_refused() {
    assert!(refusal(&bzimage(), Protocol::Pvh).starts_with("kernel k: a bzImage has no PVH entry"));
}
