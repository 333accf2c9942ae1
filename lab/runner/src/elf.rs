//! The guests' ELF image: loading its segments and reading its test table.

use std::sync::OnceLock;

/// The image that `build.rs` made.
pub static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guests.elf"));

/// One test of the image.
#[derive(Clone, Debug)]
pub struct Test {
    /// `group/name`.
    pub name: String,
    /// Entry point: a function (long mode) or the first instruction.
    pub entry: u64,
    /// Configuration word, see `config.rs`.
    pub config: u64,
}

fn u16_at(o: usize) -> usize {
    u16::from_le_bytes(IMAGE[o..o + 2].try_into().expect("two bytes")).into()
}
fn u32_at(o: usize) -> usize {
    u32::from_le_bytes(IMAGE[o..o + 4].try_into().expect("four bytes")) as usize
}
fn u64_at(o: usize) -> u64 {
    u64::from_le_bytes(IMAGE[o..o + 8].try_into().expect("eight bytes"))
}

/// Entry point of the image: the 64-bit start-up code.
pub fn start64() -> u64 {
    u64_at(24)
}

/// Loadable segments: guest-physical address and bytes.
pub fn segments() -> impl Iterator<Item = (u64, &'static [u8])> {
    let (phoff, phsize, phnum) = (u64_at(32) as usize, u16_at(54), u16_at(56));
    (0..phnum).map(move |i| phoff + i * phsize).filter(|&p| u32_at(p) == 1).map(|p| {
        let (offset, filesz) = (u64_at(p + 8) as usize, u64_at(p + 32) as usize);
        (u64_at(p + 24), &IMAGE[offset..offset + filesz])
    })
}

/// All records of section `.tests`, sorted by name.
pub fn tests() -> &'static [Test] {
    static TESTS: OnceLock<Vec<Test>> = OnceLock::new();
    TESTS.get_or_init(|| {
        let (shoff, shsize, shnum, shstr) = (u64_at(40) as usize, u16_at(58), u16_at(60), u16_at(62));
        let header = |i: usize| shoff + i * shsize;
        let names = u64_at(header(shstr) + 24) as usize;
        let section = (0..shnum)
            .map(header)
            .find(|&h| IMAGE[names + u32_at(h)..].starts_with(b".tests\0"))
            .expect("the guests have a test table");
        let (offset, size) = (u64_at(section + 24) as usize, u64_at(section + 32) as usize);
        let mut tests: Vec<Test> = IMAGE[offset..offset + size]
            .chunks_exact(80)
            .map(|r| Test {
                name: String::from_utf8_lossy(&r[..64]).trim_end_matches('\0').to_string(),
                entry: u64::from_le_bytes(r[64..72].try_into().expect("eight bytes")),
                config: u64::from_le_bytes(r[72..80].try_into().expect("eight bytes")),
            })
            .collect();
        tests.sort_by(|a, b| a.name.cmp(&b.name));
        tests
    })
}
