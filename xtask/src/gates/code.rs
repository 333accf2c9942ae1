//! The Rust object's code: functions, instructions, where calls go, and the gates that need only those.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use iced_x86::{
    Code as Op, CpuidFeature, Decoder, DecoderOptions, EncodingKind, FlowControl, Formatter, Instruction,
    InstructionInfoFactory, IntelFormatter, Mnemonic, OpKind, Register,
};
use object::{
    Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex, SectionKind, SymbolKind,
    SymbolSection,
};

use super::Report;

/// The biggest stack frame in bytes. The kernel's stack is 16 KiB for the whole way from the ioctl down.
pub const FRAME_MAX: u64 = 1024;

/// One function of the object.
pub struct Function {
    /// Demangled.
    pub name: String,
    /// Every direct call or jump out of the function: names of the targets, in order.
    pub calls: Vec<String>,
    frame: u64,
    dynamic_frame: bool,
    branches: Vec<String>,
    vectors: Vec<String>,
    instructions: usize,
}

/// All functions.
pub struct Code {
    /// In the order of the object.
    pub functions: Vec<Function>,
}

/// What lies in one section, by offset.
struct Section<'a> {
    data: &'a [u8],
    /// Relocations of this section: what the bytes at an offset refer to, and the addend.
    relocations: BTreeMap<u64, (Target, i64)>,
    /// Functions by start, with their length.
    symbols: BTreeMap<u64, (String, u64)>,
}

enum Target {
    /// A named symbol.
    Symbol(String),
    /// A place in a section: the addend says where.
    Section(SectionIndex),
}

impl Code {
    /// Reads and decodes a relocatable object.
    pub fn read(bytes: &[u8]) -> Result<Code> {
        let file = object::File::parse(bytes).context("not an object file")?;
        let mut sections = BTreeMap::new();
        for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
            let relocations = section.relocations().map(|(at, reloc)| {
                let target = match reloc.target() {
                    RelocationTarget::Symbol(index) => {
                        let symbol = file.symbol_by_index(index)?;
                        match (symbol.kind(), symbol.section()) {
                            (SymbolKind::Section, SymbolSection::Section(index)) => Target::Section(index),
                            _ => Target::Symbol(demangle(symbol.name()?)),
                        }
                    }
                    RelocationTarget::Section(index) => Target::Section(index),
                    _ => Target::Symbol(String::new()),
                };
                Ok((at, (target, reloc.addend())))
            });
            let relocations = relocations.collect::<Result<_>>()?;
            let data = section.data()?;
            sections.insert(section.index().0, Section { data, relocations, symbols: BTreeMap::new() });
        }
        for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
            let Some(section) = symbol.section_index().and_then(|index| sections.get_mut(&index.0)) else {
                continue;
            };
            section.symbols.insert(symbol.address(), (demangle(symbol.name()?), symbol.size()));
        }
        let mut functions = Vec::new();
        for section in sections.values() {
            for (&start, (name, size)) in &section.symbols {
                functions.push(section.function(&sections, name, start, *size)?);
            }
        }
        Ok(Code { functions })
    }

    /// The gates on branches, vector registers and frames.
    pub fn check(&self, report: &mut Report) {
        for function in &self.functions {
            report.branches.extend(function.branches.iter().map(|text| format!("{}: {text}", function.name)));
            report.vectors.extend(function.vectors.iter().map(|text| format!("{}: {text}", function.name)));
            if function.dynamic_frame {
                report.frames.push(format!("{}: frame of unknown size", function.name));
            } else if function.frame > FRAME_MAX {
                report.frames.push(format!("{}: {} bytes", function.name, function.frame));
            }
        }
        let mut by_frame: Vec<_> = self.functions.iter().collect();
        by_frame.sort_by_key(|function| std::cmp::Reverse(function.frame));
        report.biggest_frames =
            by_frame.iter().take(5).map(|function| format!("{} {}", function.frame, function.name)).collect();
        report.seen =
            (self.functions.len(), self.functions.iter().map(|function| function.instructions).sum());
    }
}

impl Section<'_> {
    fn function(
        &self,
        sections: &BTreeMap<usize, Section<'_>>,
        name: &str,
        start: u64,
        size: u64,
    ) -> Result<Function> {
        let range = start as usize..(start + size) as usize;
        let bytes = self.data.get(range).with_context(|| format!("{name} reaches past its section"))?;
        let mut function = Function {
            name: name.to_string(),
            calls: Vec::new(),
            frame: 0,
            dynamic_frame: false,
            branches: Vec::new(),
            vectors: Vec::new(),
            instructions: 0,
        };
        let mut info = InstructionInfoFactory::new();
        let mut decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
        let mut pushed = 0;
        let mut subtracted = 0;
        let mut lowest = 0;
        while decoder.can_decode() {
            let instruction = decoder.decode();
            let offsets = decoder.get_constant_offsets(&instruction);
            function.instructions += 1;
            if uses_vectors(&mut info, &instruction) {
                function.vectors.push(shown(&instruction));
            }
            match instruction.flow_control() {
                FlowControl::IndirectBranch | FlowControl::IndirectCall | FlowControl::Return => {
                    function.branches.push(shown(&instruction));
                }
                FlowControl::Call | FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                    let at = instruction.ip() + offsets.immediate_offset() as u64;
                    let inside = instruction.near_branch_target().wrapping_sub(start) < size;
                    if self.relocations.contains_key(&at) || !inside {
                        function.calls.extend(self.target(sections, at, instruction.near_branch_target()));
                    }
                }
                _ => {}
            }
            match stack_change(&instruction) {
                Stack::Push => pushed += 8,
                Stack::Pop => pushed -= 8,
                Stack::Sub(n) => subtracted += n,
                // Probes of a big frame: the lea names its whole size, the subs after it repeat it.
                Stack::Lowest(n) => lowest = lowest.max(n),
                Stack::Unknown => function.dynamic_frame = true,
                Stack::None => {}
            }
            function.frame =
                function.frame.max(u64::try_from(pushed.max(0)).unwrap_or(0) + subtracted.max(lowest));
        }
        Ok(function)
    }

    /// Where the branch whose displacement lies at `at` goes.
    fn target(&self, sections: &BTreeMap<usize, Section<'_>>, at: u64, near: u64) -> Option<String> {
        let (section, offset) = match self.relocations.get(&at) {
            Some((Target::Symbol(name), _)) => return Some(name.clone()),
            // A branch's displacement counts from its end, 4 bytes on.
            Some((Target::Section(index), addend)) => {
                (sections.get(&index.0)?, addend.wrapping_add(4) as u64)
            }
            None => (self, near),
        };
        let (start, (name, size)) = section.symbols.range(..=offset).next_back()?;
        (offset < start + size.max(&1)).then(|| name.clone())
    }
}

enum Stack {
    Push,
    Pop,
    Sub(u64),
    Lowest(u64),
    Unknown,
    None,
}

/// How an instruction moves the stack pointer, as far as prologues and probes do.
fn stack_change(instruction: &Instruction) -> Stack {
    let to_rsp = instruction.op0_kind() == OpKind::Register && instruction.op0_register() == Register::RSP;
    match instruction.mnemonic() {
        Mnemonic::Push => Stack::Push,
        Mnemonic::Pop => Stack::Pop,
        Mnemonic::Sub if to_rsp => match instruction.try_immediate(1) {
            Ok(n) => Stack::Sub(n),
            Err(_) => Stack::Unknown,
        },
        Mnemonic::Add if to_rsp => match instruction.try_immediate(1).map(|n| n as i64) {
            Ok(n) if n < 0 => Stack::Sub(n.unsigned_abs()),
            Ok(_) => Stack::None,
            Err(_) => Stack::Unknown,
        },
        Mnemonic::Lea if instruction.memory_base() == Register::RSP => {
            let displacement = instruction.memory_displacement64() as i64;
            if instruction.memory_index() == Register::None && displacement < 0 {
                Stack::Lowest(displacement.unsigned_abs())
            } else {
                Stack::None
            }
        }
        _ => Stack::None,
    }
}

/// Does it touch registers that belong to user space while the kernel runs?
fn uses_vectors(info: &mut InstructionInfoFactory, instruction: &Instruction) -> bool {
    if instruction.encoding() != EncodingKind::Legacy && !general_only(info, instruction) {
        return true;
    }
    // FWAIT and the control-register moves name no register.
    let x87 = |feature: &CpuidFeature| {
        matches!(feature, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387 | CpuidFeature::MMX)
    };
    instruction.cpuid_features().iter().any(x87)
        || matches!(instruction.code(), Op::Ldmxcsr_m32 | Op::Stmxcsr_m32)
        || !general_only(info, instruction)
}

/// Only general, segment, control and debug registers?
fn general_only(info: &mut InstructionInfoFactory, instruction: &Instruction) -> bool {
    let used = info.info(instruction).used_registers();
    !used.iter().any(|used| {
        let register = used.register();
        register.is_vector_register()
            || register.is_mm()
            || register.is_st()
            || register.is_k()
            || register.is_tmm()
    })
}

fn shown(instruction: &Instruction) -> String {
    let mut text = String::new();
    IntelFormatter::new().format(instruction, &mut text);
    format!("{:#x}: {text}", instruction.ip())
}

fn demangle(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(bytes: &[u8]) -> Function {
        let section = Section { data: bytes, relocations: BTreeMap::new(), symbols: BTreeMap::new() };
        section.function(&BTreeMap::new(), "f", 0, bytes.len() as u64).expect("decodes")
    }

    /// A plain `ret` and a `call rax` are what retpolines and return thunks exist to replace.
    #[test]
    fn bare_branches_are_found() {
        assert_eq!(function(&[0xff, 0xd0, 0xc3]).branches.len(), 2);
        assert!(function(&[0xe9, 0, 0, 0, 0, 0xcc]).branches.is_empty());
    }

    /// movaps would overwrite a user task's registers; lfence and pause carry SSE feature bits and are harmless.
    #[test]
    fn vector_registers_are_found() {
        assert_eq!(function(&[0x0f, 0x28, 0xc1]).vectors.len(), 1);
        assert_eq!(function(&[0xd9, 0xe8]).vectors.len(), 1);
        assert_eq!(function(&[0xc5, 0xfc, 0x28, 0xc1]).vectors.len(), 1);
        assert!(function(&[0x0f, 0xae, 0xe8, 0xf3, 0x90, 0x0f, 0x01, 0xd1]).vectors.is_empty());
    }

    /// push rbx; sub rsp, 0x500 and a probed frame of 0x3000 bytes.
    #[test]
    fn frames_are_measured() {
        assert_eq!(function(&[0x53, 0x48, 0x81, 0xec, 0, 5, 0, 0]).frame, 0x508);
        let probed = [0x4c, 0x8d, 0x9c, 0x24, 0, 0xd0, 0xff, 0xff, 0x48, 0x81, 0xec, 0, 0x10, 0, 0];
        assert_eq!(function(&probed).frame, 0x3000);
        assert!(function(&[0x48, 0x29, 0xc4]).dynamic_frame);
    }
}
