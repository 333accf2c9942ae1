//! What Bochs puts into memory before the first instruction: the kernel, its initial RAM disk, its start information.
//!
//! ```text
//! 0000_7c00  boot sector (from the floppy): protected mode, EBX = START_INFO, jump to the kernel's PVH entry
//! 0100_0000  vmlinux.bin: the kernel's ELF segments at their physical addresses, uncompressed
//! 0f00_0000  info.bin: hvm_start_info, list of modules, memory map, command line
//! 1000_0000  initrd, uncompressed
//! ```
//! The kernel that runs is bit for bit the stock one; its loader and its self-decompression are left out, because an
//! emulator that runs a hundred million instructions a second spends most of a minute in them.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use object::{
    Endianness,
    elf::{FileHeader64, PT_LOAD, PT_NOTE},
    read::elf::{FileHeader, ProgramHeader},
};

use crate::{
    lab::{cpio::Tree, deps::KernelTree},
    paths, say,
    sh::{self, cmd},
};

/// Where the initial RAM disk is loaded.
pub const INITRD: u64 = 0x1000_0000;
/// Where the start information is loaded.
pub const START_INFO: u64 = 0x0f00_0000;
/// What the BIOS takes from the top of memory for its ACPI tables.
const ACPI_BYTES: u64 = 64 << 10;

/// A kernel ready to be loaded.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Its memory, from `address` on.
    pub file: PathBuf,
    /// The lowest physical address of its segments.
    pub address: u64,
    /// Its 32-bit PVH entry point.
    pub entry: u64,
}

/// The flat form of a bzImage, from the cache if it was made before.
pub fn kernel(image: &Path) -> Result<Kernel> {
    let sums = sh::sha256(&[image])?;
    let sum = sums.first().and_then(|sum| sum.get(..16)).context("no checksum")?;
    let dir = paths::made(paths::cache()?.join("bochs/kernels"))?;
    let elf_file = dir.join(format!("{sum}.elf"));
    let flat_file = dir.join(format!("{sum}.flat"));
    if !elf_file.exists() {
        let elf = unpacked(&fs::read(image)?, &dir).with_context(|| image.display().to_string())?;
        replace(&elf_file, |part| Ok(fs::write(part, &elf)?))?;
    }
    let elf = fs::read(&elf_file)?;
    let layout = Layout::of(&elf)?;
    if !flat_file.exists() {
        replace(&flat_file, |part| layout.write(&elf, part))?;
    }
    Ok(Kernel { file: flat_file, address: layout.from, entry: layout.entry })
}

/// Writes a file under another name first: a file of the cache is whole or absent.
fn replace(file: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let part = file.with_extension(format!("part-{}", std::process::id()));
    write(&part)?;
    Ok(fs::rename(&part, file)?)
}

/// The ELF file in a bzImage (Linux boot protocol 2.08: payload_offset and payload_length of the setup header).
fn unpacked(image: &[u8], scratch: &Path) -> Result<Vec<u8>> {
    if image.get(0x202..0x206) != Some(b"HdrS".as_slice()) {
        bail!("this is no bzImage");
    }
    let setup_sectors = *image.get(0x1f1).context("short file")?;
    let payload = (usize::from(setup_sectors) + 1) * 512 + le32(image, 0x248)? as usize;
    let length = le32(image, 0x24c)? as usize;
    // Its last four bytes are the size of what comes out.
    let packed = image.get(payload..payload + length.saturating_sub(4)).context("the payload is cut off")?;
    if packed.get(..4) != Some([0x02, 0x21, 0x4c, 0x18].as_slice()) {
        bail!("the kernel is not packed with LZ4: the VMX machine boots Debian's cloud kernel only");
    }
    let file = scratch.join(format!("unpack-{}.lz4", std::process::id()));
    fs::write(&file, packed)?;
    let out = Command::new("lz4").arg("-dc").arg(&file).output().context("cannot start lz4")?;
    fs::remove_file(&file)?;
    if out.stdout.len() as u64 != u64::from(le32(image, payload + length - 4)?) {
        bail!("lz4 did not unpack it whole: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(out.stdout)
}

fn le32(data: &[u8], at: usize) -> Result<u32> {
    let bytes = data.get(at..at + 4).context("short file")?;
    Ok(u32::from_le_bytes(bytes.try_into()?))
}

/// Where the parts of an ELF kernel go.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    from: u64,
    to: u64,
    entry: u64,
    /// Physical address, offset in the file, bytes in the file.
    parts: Vec<(u64, u64, u64)>,
}

impl Layout {
    fn of(elf: &[u8]) -> Result<Layout> {
        let header = FileHeader64::<Endianness>::parse(elf)?;
        let endian = header.endian()?;
        let mut layout = Layout { from: u64::MAX, to: 0, entry: 0, parts: Vec::new() };
        for segment in header.program_headers(endian, elf)? {
            match segment.p_type(endian) {
                PT_LOAD => {
                    let at = segment.p_paddr(endian);
                    layout.from = layout.from.min(at);
                    layout.to = layout.to.max(at + segment.p_memsz(endian));
                    layout.parts.push((at, segment.p_offset(endian), segment.p_filesz(endian)));
                }
                PT_NOTE => layout.entry = pvh_entry(segment, endian, elf)?.unwrap_or(layout.entry),
                _ => {}
            }
        }
        if layout.entry == 0 || layout.parts.is_empty() {
            bail!(
                "the kernel has no PVH entry point (CONFIG_PVH); the debug kernel runs on the other machine only"
            );
        }
        Ok(layout)
    }

    /// Bss is a hole in the file: zeros.
    fn write(&self, elf: &[u8], to: &Path) -> Result<()> {
        let file = fs::File::create(to)?;
        file.set_len(self.to - self.from)?;
        for &(at, offset, bytes) in &self.parts {
            let data = elf.get(offset as usize..(offset + bytes) as usize).context("a segment is cut off")?;
            file.write_all_at(data, at - self.from)?;
        }
        Ok(())
    }
}

/// Note "Xen", type 18: the physical address of the 32-bit entry point.
fn pvh_entry(
    segment: &object::elf::ProgramHeader64<Endianness>,
    endian: Endianness,
    elf: &[u8],
) -> Result<Option<u64>> {
    const PHYS32_ENTRY: u32 = 18;
    let Some(mut notes) = segment.notes(endian, elf)? else { return Ok(None) };
    while let Some(note) = notes.next()? {
        if note.name() == b"Xen" && note.n_type(endian) == PHYS32_ENTRY {
            return Ok(Some(le32(note.desc(), 0)?.into()));
        }
    }
    Ok(None)
}

/// The 1.44 MB floppy whose boot sector enters the kernel.
pub fn floppy(entry: u64, to: &Path) -> Result<()> {
    let object = to.with_extension("o");
    let mut assemble = cmd("as", ["--32", "--defsym", &format!("pvh_entry={entry:#x}"), "--defsym"]);
    assemble.arg(format!("start_info={START_INFO:#x}")).arg("-o").arg(&object);
    sh::quiet(assemble.arg(paths::root().join("lab/bochs/boot.S")))?;
    let mut link = cmd("ld", ["-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o"]);
    sh::quiet(link.arg(to).arg(&object))?;
    fs::remove_file(&object)?;
    let sector = fs::metadata(to)?.len();
    if sector != 512 {
        bail!("the boot sector has {sector} bytes");
    }
    Ok(fs::OpenOptions::new().write(true).open(to)?.set_len(1440 << 10)?)
}

/// `hvm_start_info`, version 1, and what it points to (Xen's PVH boot ABI). `memory` and `initrd` in bytes.
pub fn start_info(memory: u64, initrd: u64, command_line: &str) -> Result<Vec<u8>> {
    const MODULES: usize = 0x100;
    const MAP: usize = 0x200;
    const COMMAND_LINE: usize = 0x1000;
    const RAM: u32 = 1;
    const RESERVED: u32 = 2;
    const ACPI: u32 = 3;
    let tables = memory.checked_sub(ACPI_BYTES).context("no memory")?;
    let map = [
        (0, 0x9_fc00, RAM),
        (0x9_fc00, 0xa_0000, RESERVED),
        (0xe_8000, 0x10_0000, RESERVED),
        (0x10_0000, tables, RAM),
        (tables, memory, ACPI),
        (0xfffc_0000, 0x1_0000_0000, RESERVED),
    ];
    if command_line.len() > 2047 {
        bail!("the kernel's command line is longer than 2047 bytes");
    }
    let mut page = vec![0u8; COMMAND_LINE + command_line.len() + 1];
    let mut put = |at: usize, bytes: &[u8]| {
        page[at..at + bytes.len()].copy_from_slice(bytes);
    };
    let words = [0x336e_c578_u32, 1, 0, 1].map(u32::to_le_bytes).concat(); // Magic, version, flags, modules.
    put(0, &words);
    let below = |offset: usize| (START_INFO + offset as u64).to_le_bytes();
    // Addresses of modules, command line, ACPI root (0: Linux looks for it), memory map.
    put(0x10, &[below(MODULES), below(COMMAND_LINE), [0; 8], below(MAP)].concat());
    put(0x30, &(map.len() as u32).to_le_bytes());
    put(MODULES, &[INITRD.to_le_bytes(), initrd.to_le_bytes()].concat());
    for (index, (from, to, kind)) in map.into_iter().enumerate() {
        put(MAP + index * 24, &[from.to_le_bytes(), (to - from).to_le_bytes()].concat());
        put(MAP + index * 24 + 16, &kind.to_le_bytes());
    }
    put(COMMAND_LINE, command_line.as_bytes());
    Ok(page)
}

/// Appends KVM's modules without their signatures to the archive: checking a signature takes the emulated machine a
/// second, and a module that is the only thing wrong with its kernel needs none.
pub fn add_unsigned_modules(kernel: &KernelTree, initrd: &Path) -> Result<()> {
    let mut tree = Tree::default();
    for name in ["irqbypass", "kvm", "kvm-intel"] {
        let data = fs::read(kernel.module(name)?)?;
        tree.text(&format!("/modules/{name}.ko"), unsigned(&data), 0o644);
    }
    let part = initrd.with_extension("modules");
    tree.write(&part)?;
    let mut out = fs::OpenOptions::new().append(true).open(initrd)?;
    std::io::copy(&mut fs::File::open(&part)?, &mut out)?;
    fs::remove_file(&part)?;
    say::note(format!("initial RAM disk: {}", say::size(out.metadata()?.len())));
    Ok(())
}

/// A module without the signature after its ELF file: `<signature><12 bytes, the last 4 its big-endian size><marker>`.
fn unsigned(data: &[u8]) -> &[u8] {
    const MARKER: &[u8] = b"~Module signature appended~\n";
    let size = |rest: &[u8]| {
        let (_, length) = rest.split_last_chunk::<4>()?;
        rest.len().checked_sub(12)?.checked_sub(u32::from_be_bytes(*length) as usize)
    };
    data.strip_suffix(MARKER).and_then(|rest| rest.get(..size(rest)?)).unwrap_or(data)
}

#[cfg(test)]
mod tests {
    use super::{INITRD, START_INFO, le32, start_info, unsigned};

    /// Only the signature goes: a byte too much and the module's section table is cut off.
    #[test]
    fn signatures_are_cut_off() {
        let mut file = b"ELF...".to_vec();
        file.extend([7; 300]);
        file.extend([1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 1, 44]);
        file.extend(b"~Module signature appended~\n");
        assert_eq!(unsigned(&file), b"ELF...");
        assert_eq!(unsigned(b"ELF..."), b"ELF...");
    }

    /// The kernel finds its RAM disk, its command line and all its memory.
    #[test]
    fn start_information_points_to_its_parts() {
        let info = start_info(1 << 30, 5000, "quiet").unwrap();
        let at = |offset: u32| (offset - START_INFO as u32) as usize;
        assert_eq!(le32(&info, 0).unwrap(), 0x336e_c578);
        let module = at(le32(&info, 0x10).unwrap());
        assert_eq!(le32(&info, module).unwrap(), INITRD as u32);
        assert_eq!(le32(&info, module + 8).unwrap(), 5000);
        let line = at(le32(&info, 0x18).unwrap());
        assert_eq!(&info[line..], b"quiet\0");
        let map = at(le32(&info, 0x28).unwrap());
        let ram: u32 = (0..le32(&info, 0x30).unwrap() as usize)
            .filter(|i| le32(&info, map + i * 24 + 16).unwrap() == 1)
            .map(|i| le32(&info, map + i * 24 + 8).unwrap())
            .sum();
        assert_eq!(ram, (1 << 30) - (64 << 10) - (1 << 20) + 0x9_fc00);
    }
}
