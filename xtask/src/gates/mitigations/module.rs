//! One kernel module as the gate sees it: which functions are patched for which CPU features, and which of the kernel's
//! symbols they use.
//!
//! The kernel patches *alternatives* when it loads a module: `.altinstructions` names, for each, the place, its replacement
//! and the feature. The format changes between kernels, so its entries' size is taken from their relocations.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpAccess, OpKind};
use object::{
    Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex, SymbolIndex, SymbolKind,
    SymbolSection,
};

/// A place that the kernel patches on CPUs with a feature (or without, if `inverted`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Patch {
    /// Word times 32 plus bit, as in the kernel's `cpufeatures.h`.
    pub feature: u16,
    /// Patched where the feature is absent.
    pub inverted: bool,
    site: Place,
    site_len: u8,
    replacement: Place,
    replacement_len: u8,
}

/// Sections that list places to patch.
const LISTS: &[&str] = &[".call_sites", ".cfi_sites", ".ibt_endbr_seal", ".retpoline_sites", ".return_sites"];

/// A section's index and an offset.
type Place = (usize, u64);

struct Function {
    name: String,
    section: usize,
    start: u64,
    end: u64,
}

/// Features, with whether their absence is meant, and symbols of the kernel.
pub type Found = (Vec<(u16, bool)>, BTreeSet<String>);

/// What is in a module.
pub struct Module {
    functions: Vec<Function>,
    patches: Vec<Patch>,
    /// Uses of the kernel's symbols.
    uses: BTreeMap<Place, String>,
    code: BTreeMap<usize, Vec<u8>>,
    names: BTreeMap<usize, String>,
    /// What `.retpoline_sites` and `.return_sites` list.
    listed: BTreeSet<Place>,
}

impl Module {
    /// Reads a relocatable module, `.ko` or `.o`.
    pub fn read(bytes: &[u8]) -> Result<Module> {
        let file = object::File::parse(bytes).context("not an object file")?;
        let mut module = Module {
            functions: functions(&file)?,
            patches: Vec::new(),
            uses: BTreeMap::new(),
            code: BTreeMap::new(),
            names: BTreeMap::new(),
            listed: BTreeSet::new(),
        };
        for section in file.sections() {
            let (index, name) = (section.index().0, section.name()?.to_string());
            match name.as_str() {
                ".altinstructions" => module.patches = patches(&file, &section)?,
                ".retpoline_sites" | ".return_sites" => {
                    for (_, place) in places(&file, &section)? {
                        module.listed.insert(place);
                    }
                }
                _ => {}
            }
            if section.kind() == object::SectionKind::Text {
                module.code.insert(index, section.data()?.to_vec());
                for (at, relocation) in section.relocations() {
                    if let RelocationTarget::Symbol(symbol) = relocation.target()
                        && file.symbol_by_index(symbol)?.is_undefined()
                    {
                        module.uses.insert((index, at), file.symbol_by_index(symbol)?.name()?.to_string());
                    }
                }
            }
            module.names.insert(index, name);
        }
        Ok(module)
    }

    /// The features of all alternatives.
    pub fn features(&self) -> BTreeSet<(u16, bool)> {
        self.patches.iter().map(|patch| (patch.feature, patch.inverted)).collect()
    }

    /// The features of one function, in the order in which they come first.
    pub fn order(&self, name: &str) -> Vec<(u16, bool)> {
        let function = self.functions.iter().find(|function| function.name == name);
        let mut patches: Vec<_> =
            function.into_iter().flat_map(|function| self.patches_in(function)).collect();
        patches.sort_by_key(|patch| patch.site);
        let mut found = Vec::new();
        for feature in patches.iter().map(|patch| (patch.feature, patch.inverted)) {
            if !found.contains(&feature) {
                found.push(feature);
            }
        }
        found
    }

    /// Every symbol of the kernel that code uses.
    pub fn symbols(&self) -> BTreeSet<String> {
        self.uses.values().cloned().collect()
    }

    /// Its lists of places to patch, which objtool made: retpolines, returns, calls, entries of functions.
    pub fn lists(&self) -> BTreeSet<String> {
        self.names.values().filter(|name| LISTS.contains(&name.as_str())).cloned().collect()
    }

    /// Features (each as often as a place is patched for it) and symbols of the functions with these names, the
    /// replacements of their patches included.
    pub fn of_functions(&self, names: &[&str]) -> Result<Found> {
        let (mut features, mut symbols) = (Vec::new(), BTreeSet::new());
        for name in names {
            let mut known = false;
            for function in self.functions.iter().filter(|function| is_part(&function.name, name)) {
                known = true;
                symbols.extend(self.used((function.section, function.start), function.end - function.start));
                for patch in self.patches_in(function) {
                    features.push((patch.feature, patch.inverted));
                    symbols.extend(self.used(patch.replacement, patch.replacement_len.into()));
                }
            }
            ensure!(known, "the module has no function {name}");
        }
        Ok((features, symbols))
    }

    /// Calls of the kernel's branch and return thunks that the kernel cannot find to patch them.
    pub fn unlisted_thunks(&self) -> Vec<String> {
        let thunk = |name: &str| name.starts_with("__x86_indirect_thunk_") || name == "__x86_return_thunk";
        let section = |index| self.names.get(index).map_or("", String::as_str);
        let mut found = Vec::new();
        for ((index, at), name) in self.uses.iter().filter(|(_, name)| thunk(name)) {
            // The call's opcode lies before its displacement, behind prefixes.
            let listed = (1..=3)
                .any(|back| at.checked_sub(back).is_some_and(|at| self.listed.contains(&(*index, at))));
            if !listed {
                found.push(format!("{name} at {}+{at:#x}", section(index)));
            }
        }
        found
    }

    /// In `function`, between clearing the CPU's buffers (`feature`) and each of the entries into the guest: what reads or
    /// writes memory and so may fill them again. An error if the buffers are not cleared there at all.
    pub fn memory_behind(&self, function: &str, feature: u16, entries: &[Mnemonic]) -> Result<Vec<String>> {
        let function = self.functions.iter().find(|f| f.name == function).context("no such function")?;
        let code = self.code.get(&function.section).context("not in code")?;
        let mut found = Vec::new();
        let patches: Vec<_> = self.patches_in(function).filter(|patch| patch.feature == feature).collect();
        ensure!(!patches.is_empty(), "{} is not patched for feature {feature}", function.name);
        for patch in patches {
            // Either the replacement is VERW, or it replaces a jump over it.
            let mut at = patch.site.1;
            let mut cleared = self.starts_with_verw(patch);
            at += u64::from(patch.site_len);
            let mut entered = 0;
            let end = function.end as usize;
            let bytes = code.get(at as usize..end).context("patched outside of its function")?;
            for instruction in Decoder::with_ip(64, bytes, at, DecoderOptions::NONE).iter() {
                if instruction.mnemonic() == Mnemonic::Verw {
                    cleared = true;
                } else if entries.contains(&instruction.mnemonic()) {
                    entered += 1;
                } else if touches_memory(&instruction) {
                    found.push(format!(
                        "{}: {:?} at {:#x}",
                        function.name,
                        instruction.code(),
                        instruction.ip()
                    ));
                }
                if entered == entries.len() {
                    break;
                }
            }
            if !cleared || entered != entries.len() {
                bail!("{}: VERW and then {entries:?} were not found", function.name);
            }
        }
        Ok(found)
    }

    fn starts_with_verw(&self, patch: &Patch) -> bool {
        let (section, start) = patch.replacement;
        let bytes = self.code.get(&section).and_then(|code| code.get(start as usize..));
        bytes.is_some_and(|bytes| Decoder::new(64, bytes, 0).decode().mnemonic() == Mnemonic::Verw)
    }

    fn patches_in<'a>(&'a self, function: &'a Function) -> impl Iterator<Item = &'a Patch> {
        self.patches.iter().filter(|patch| {
            patch.site.0 == function.section && (function.start..function.end).contains(&patch.site.1)
        })
    }

    fn used(&self, (section, start): Place, len: u64) -> impl Iterator<Item = String> + '_ {
        self.uses.range((section, start)..(section, start + len)).map(|(_, name)| name.clone())
    }
}

/// The function itself or what the compiler split off: `f.cold`, `f.part.0`.
fn is_part(name: &str, of: &str) -> bool {
    name.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn touches_memory(instruction: &iced_x86::Instruction) -> bool {
    let mut info = iced_x86::InstructionInfoFactory::new();
    let accesses =
        info.info(instruction).used_memory().iter().any(|memory| memory.access() != OpAccess::NoMemAccess);
    accesses || instruction.op_kinds().any(|kind| kind == OpKind::Memory)
}

fn functions(file: &object::File<'_>) -> Result<Vec<Function>> {
    let mut found = Vec::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
        let SymbolSection::Section(section) = symbol.section() else { continue };
        let (start, end) = (symbol.address(), symbol.address() + symbol.size());
        found.push(Function { name: symbol.name()?.to_string(), section: section.0, start, end });
    }
    Ok(found)
}

/// All that a section's relocations point to, in order: where each is, and what it points to.
fn places(file: &object::File<'_>, section: &object::Section<'_, '_>) -> Result<Vec<(u64, Place)>> {
    let mut found = Vec::new();
    for (at, relocation) in section.relocations() {
        let (target, base) = match relocation.target() {
            RelocationTarget::Symbol(index) => place_of(file, index)?,
            RelocationTarget::Section(index) => (index, 0),
            _ => bail!("a relocation of an unknown kind"),
        };
        found.push((at, (target.0, base.wrapping_add_signed(relocation.addend()))));
    }
    found.sort_unstable();
    Ok(found)
}

fn place_of(file: &object::File<'_>, index: SymbolIndex) -> Result<(SectionIndex, u64)> {
    let symbol = file.symbol_by_index(index)?;
    let section = symbol
        .section_index()
        .with_context(|| format!("{} is in no section", symbol.name().unwrap_or("?")))?;
    Ok((section, symbol.address()))
}

fn patches(file: &object::File<'_>, section: &object::Section<'_, '_>) -> Result<Vec<Patch>> {
    let data = section.data()?;
    let places = places(file, section)?;
    let size = entry_size(&places.iter().map(|(at, _)| *at).collect::<Vec<_>>(), data.len())?;
    let mut found = Vec::new();
    for (entry, pair) in data.chunks_exact(size).zip(places.chunks_exact(2)) {
        let &[(_, site), (_, replacement)] = pair else { bail!("chunks of two") };
        let (feature, inverted, site_len, replacement_len) = fields(entry).context("a short entry")?;
        found.push(Patch { feature, inverted, site, site_len, replacement, replacement_len });
    }
    Ok(found)
}

/// Each entry begins with two relocated words, so the relocations' offsets tell how big an entry is.
fn entry_size(offsets: &[u64], len: usize) -> Result<usize> {
    let entries = offsets.len() / 2;
    ensure!(
        entries > 0 && offsets.len().is_multiple_of(2) && len.is_multiple_of(entries),
        "not two relocations for each entry"
    );
    let size = len / entries;
    let regular =
        offsets.chunks_exact(2).zip(0..).all(|(pair, n)| pair == [n * size as u64, n * size as u64 + 4]);
    ensure!(
        regular && (12..=16).contains(&size),
        "entries of {size} bytes that are not what this gate knows"
    );
    Ok(size)
}

/// Behind two words: the feature; flags in the feature's upper bits (12 bytes in all) or in the next two bytes; two lengths.
fn fields(entry: &[u8]) -> Option<(u16, bool, u8, u8)> {
    let word = |at: usize| Some(u16::from_le_bytes([*entry.get(at)?, *entry.get(at + 1)?]));
    let feature = word(8)?;
    Some(if entry.len() == 12 {
        (feature & !(1 << 15), feature >> 15 != 0, *entry.get(10)?, *entry.get(11)?)
    } else {
        (feature, word(10)? & 1 != 0, *entry.get(12)?, *entry.get(13)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 6.1 has entries of 12 bytes, 6.12 of 14: each reads as garbage in the other's format.
    #[test]
    fn sizes_come_from_the_relocations() {
        assert_eq!(entry_size(&[0, 4, 12, 16], 24).ok(), Some(12));
        assert_eq!(entry_size(&[0, 4, 14, 18, 28, 32], 42).ok(), Some(14));
        assert!(entry_size(&[0, 4, 12], 24).is_err());
        assert!(entry_size(&[0, 4, 16, 20], 28).is_err());
        assert!(entry_size(&[], 0).is_err());
    }

    #[test]
    fn fields_of_both_formats() {
        let old = [0, 0, 0, 0, 0, 0, 0, 0, 0x72, 0x81, 5, 3];
        assert_eq!(fields(&old), Some((0x172, true, 5, 3)));
        let new = [0, 0, 0, 0, 0, 0, 0, 0, 0x72, 0x01, 1, 0, 7, 6];
        assert_eq!(fields(&new), Some((0x172, true, 7, 6)));
        assert_eq!(fields(&old[..9]), None);
    }

    #[test]
    fn parts_of_functions() {
        assert!(is_part("f", "f") && is_part("f.cold", "f") && !is_part("fg", "f"));
    }
}
