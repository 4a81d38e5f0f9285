//! The one recipe: check everything, then write everything.

use linux_loader::loader::bootparam::setup_header;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend};

use crate::{
    BootError, BootSource, Initrd, KernelError, Platform, Protocol,
    bzimage::BzImage,
    cmdline::{self, CommandLine, LINUX_CAPACITY},
    cpu::{self, CpuState},
    elf::Elf,
    image::{Image, ImageError},
    initrd::{self, InitrdError, Placement},
    layout::{self, Ram},
    linux, pvh,
};

/// Writes kernel, initial RAM disk, command line, `boot_params` or `hvm_start_info`, page tables, GDT and MP table into
/// `mem`, and returns where the first vCPU starts.
///
/// `mem` must be laid out as [`layout::ram_regions`] has it and still be all zeros: what a kernel expects to be zero is
/// not written. Everything is checked before anything is written, except that reading the files' contents can fail
/// half-way; after an error, `mem` is of no more use.
pub fn load<M: GuestMemoryBackend>(
    mem: &M,
    source: &BootSource<'_>,
    platform: &Platform,
) -> Result<CpuState, BootError> {
    let name = source.kernel.to_string_lossy();
    let kernel = Image::open(source.kernel).map_err(kernel_error(&name))?;
    let initrd = source.initrd.map(open_initrd).transpose()?;
    load_images(mem, &kernel, initrd.as_ref(), source.cmdline, source.protocol, platform)
}

/// As [`load`], from images that are open already.
pub fn load_images<M: GuestMemoryBackend>(
    mem: &M,
    kernel: &Image<'_>,
    initrd: Option<&Image<'_>>,
    cmdline: &str,
    protocol: Protocol,
    platform: &Platform,
) -> Result<CpuState, BootError> {
    let ram = Ram::of(mem)?;
    let table = platform.table()?;
    let parsed = Kernel::parse(kernel, protocol, &ram).map_err(kernel_error(kernel.name()))?;
    let cmdline = cmdline::check(cmdline, parsed.cmdline_max())?;
    let place = |image: &Image<'_>| {
        let placed = initrd::place(image.size(), parsed.extent(), parsed.initrd_max(), ram.low_end());
        placed.map_err(initrd_error(image.name()))
    };
    let placement = initrd.map(place).transpose()?;
    tracing::debug!(kernel = kernel.name(), extent = ?parsed.extent(), initrd = ?placement, "loading");

    parsed.load(mem, kernel).map_err(kernel_error(kernel.name()))?;
    if let (Some(image), Some(at)) = (initrd, placement) {
        initrd::load(mem, image, at).map_err(initrd_error(image.name()))?;
    }
    write(mem, "MP table", &table, layout::MP_TABLE_START)?;
    let state = write_boot_structures(mem, &parsed, &cmdline, placement, &ram)?;
    let gdt: Vec<u8> = state.gdt().entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    write(mem, "GDT", &gdt, state.gdt().base)?;
    Ok(state)
}

/// Command line, page tables, and the structure that the entry wants.
fn write_boot_structures<M: GuestMemoryBackend>(
    mem: &M,
    kernel: &Kernel,
    cmdline: &CommandLine,
    initrd: Option<Placement>,
    ram: &Ram,
) -> Result<CpuState, BootError> {
    let text = [cmdline.as_str().as_bytes(), &[0]].concat();
    write(mem, "command line", &text, layout::CMDLINE_START)?;
    let map = ram.memory_map();
    let Some(header) = kernel.setup_header(cmdline.as_str()) else {
        write(mem, "hvm_start_info", &pvh::start_info(initrd, &map), layout::START_INFO_START)?;
        return Ok(CpuState::pvh(kernel.entry()));
    };
    let params = linux::params(header, text.len(), initrd, &map);
    write(mem, "boot_params", params.as_slice(), layout::BOOT_PARAMS_START)?;
    cpu::page_tables().try_for_each(|(address, page)| write(mem, "page tables", &page, address))?;
    Ok(CpuState::linux(kernel.entry()))
}

fn write<M: GuestMemoryBackend>(mem: &M, what: &'static str, bytes: &[u8], addr: u64) -> Result<(), BootError> {
    mem.write_slice(bytes, GuestAddress(addr)).map_err(|source| BootError::Write { what, addr, source })
}

/// A checked kernel of any format, with the way it is entered.
enum Kernel {
    ElfLinux(Elf),
    ElfPvh(Elf),
    BzImage(Box<BzImage>),
}

impl Kernel {
    fn parse(image: &Image<'_>, protocol: Protocol, ram: &Ram) -> Result<Kernel, KernelError> {
        let mut magic = [0; 4];
        let len = image.size().min(magic.len() as u64) as usize;
        image.read_at(&mut magic[..len], 0)?;
        if magic == *b"\x7fELF" {
            return Ok(match protocol {
                Protocol::Auto | Protocol::Linux64 => Kernel::ElfLinux(Elf::parse_linux(image, ram)?),
                Protocol::Pvh => Kernel::ElfPvh(Elf::parse_pvh(image, ram)?),
            });
        }
        if !BzImage::is_one(image)? {
            return Err(KernelError::Format { magic });
        }
        if protocol == Protocol::Pvh {
            return Err(KernelError::BzImagePvh);
        }
        Ok(Kernel::BzImage(Box::new(BzImage::parse(image, ram)?)))
    }

    fn entry(&self) -> u64 {
        match self {
            Kernel::ElfLinux(elf) | Kernel::ElfPvh(elf) => elf.entry,
            Kernel::BzImage(image) => image.entry(),
        }
    }

    /// The memory that is the kernel's before it reads the memory map.
    fn extent(&self) -> (u64, u64) {
        match self {
            Kernel::ElfLinux(elf) | Kernel::ElfPvh(elf) => elf.extent(),
            Kernel::BzImage(image) => (image.addr, image.end),
        }
    }

    /// Most bytes of command line, NUL not counted.
    fn cmdline_max(&self) -> u64 {
        match self {
            Kernel::ElfLinux(_) | Kernel::ElfPvh(_) => LINUX_CAPACITY - 1,
            Kernel::BzImage(image) => image.header.cmdline_size.into(),
        }
    }

    /// The last address that the initial RAM disk may use.
    fn initrd_max(&self) -> u64 {
        match self {
            Kernel::ElfLinux(_) | Kernel::ElfPvh(_) => initrd::DEFAULT_MAX_ADDRESS,
            Kernel::BzImage(image) => image.header.initrd_addr_max.into(),
        }
    }

    /// The setup header for `boot_params`; none for PVH.
    fn setup_header(&self, cmdline: &str) -> Option<setup_header> {
        match self {
            Kernel::ElfLinux(_) => Some(linux::elf_header(cmdline)),
            Kernel::ElfPvh(_) => None,
            Kernel::BzImage(image) => Some(setup_header { code32_start: image.addr as u32, ..image.header }),
        }
    }

    fn load<M: GuestMemoryBackend>(&self, mem: &M, image: &Image<'_>) -> Result<(), ImageError> {
        match self {
            Kernel::ElfLinux(elf) | Kernel::ElfPvh(elf) => elf.load(mem, image),
            Kernel::BzImage(parsed) => parsed.load(mem, image),
        }
    }
}

fn open_initrd(initrd: Initrd<'_>) -> Result<Image<'_>, BootError> {
    match initrd {
        Initrd::File(path) => Image::open(path).map_err(initrd_error(&path.to_string_lossy())),
        Initrd::Bytes(bytes) => Image::from_bytes("(in memory)", bytes).map_err(initrd_error("(in memory)")),
    }
}

fn kernel_error<E: Into<KernelError>>(name: &str) -> impl FnOnce(E) -> BootError {
    move |source| BootError::Kernel { name: name.to_owned(), source: source.into() }
}

fn initrd_error<E: Into<InitrdError>>(name: &str) -> impl FnOnce(E) -> BootError {
    move |source| BootError::Initrd { name: name.to_owned(), source: source.into() }
}
