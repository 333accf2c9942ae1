//! Random instructions of every family that has a memory operand, in 64-bit encoding.

use exitless_x86::regs::rflags::{AF, CF, OF, PF, SF, ZF};

use super::Random;

/// A family of encodings that differ in operands and prefixes.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub opcode: &'static [u8],
    /// ModRM.reg is part of the opcode.
    pub extension: Option<u8>,
    pub operand: Operand,
    pub immediate: Immediate,
    pub lock: bool,
    pub flags: Undefined,
    /// A register form exists.
    pub register: bool,
}

/// Operand size: a byte, or 2, 4 or 8 bytes by prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    Byte,
    Sized,
    /// 66h is not usable.
    Wide,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Immediate {
    None,
    Byte,
    /// 2 or 4 bytes.
    Full,
}

/// Status flags the manuals leave undefined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undefined {
    None,
    Logic,
    Shift,
    Rotate,
    DoubleShift,
    Bit,
    Multiply,
}

const BASE: Form = Form {
    opcode: &[],
    extension: None,
    operand: Operand::Sized,
    immediate: Immediate::None,
    lock: false,
    flags: Undefined::None,
    register: true,
};

/// All opcodes of one byte, made static.
static ONE: [[u8; 1]; 256] = {
    let mut t = [[0]; 256];
    let mut i = 0;
    while i < 256 {
        t[i] = [i as u8];
        i += 1;
    }
    t
};

static TWO: [[u8; 2]; 256] = {
    let mut t = [[0x0f, 0]; 256];
    let mut i = 0;
    while i < 256 {
        t[i] = [0x0f, i as u8];
        i += 1;
    }
    t
};

fn one(op: u8) -> Form {
    Form { opcode: &ONE[op as usize], ..BASE }
}

fn two(op: u8) -> Form {
    Form { opcode: &TWO[op as usize], ..BASE }
}

fn byte(f: Form) -> Form {
    Form { operand: Operand::Byte, ..f }
}

/// Every form, in a fixed order.
pub fn all() -> Vec<Form> {
    let mut v = Vec::new();
    arithmetic(&mut v);
    shifts(&mut v);
    moves(&mut v);
    exchanges(&mut v);
    bits(&mut v);
    v
}

fn arithmetic(v: &mut Vec<Form>) {
    for op in 0..8u8 {
        let logic = matches!(op, 1 | 4 | 6);
        let flags = if logic { Undefined::Logic } else { Undefined::None };
        let lock = op != 7;
        v.push(Form { lock, flags, ..byte(one(op * 8)) });
        v.push(Form { lock, flags, ..one(op * 8 + 1) });
        v.push(Form { flags, ..byte(one(op * 8 + 2)) });
        v.push(Form { flags, ..one(op * 8 + 3) });
        let extension = Some(op);
        v.push(Form { lock, flags, extension, immediate: Immediate::Byte, ..byte(one(0x80)) });
        v.push(Form { lock, flags, extension, immediate: Immediate::Full, ..one(0x81) });
        v.push(Form { lock, flags, extension, immediate: Immediate::Byte, ..one(0x83) });
    }
    v.push(Form { flags: Undefined::Logic, ..byte(one(0x84)) });
    v.push(Form { flags: Undefined::Logic, ..one(0x85) });
    for (extension, flags) in [(0, Undefined::Logic), (2, Undefined::None), (3, Undefined::None)] {
        let immediate = |i| if extension == 0 { i } else { Immediate::None };
        let f = Form { flags, lock: extension != 0, extension: Some(extension), ..BASE };
        let (b, full) = (immediate(Immediate::Byte), immediate(Immediate::Full));
        v.push(Form { opcode: &[0xf6], operand: Operand::Byte, immediate: b, ..f });
        v.push(Form { opcode: &[0xf7], immediate: full, ..f });
    }
    for extension in [4, 5] {
        let f = Form { flags: Undefined::Multiply, extension: Some(extension), ..BASE };
        v.push(Form { opcode: &[0xf6], operand: Operand::Byte, ..f });
        v.push(Form { opcode: &[0xf7], ..f });
    }
    for extension in [0, 1] {
        v.push(Form { extension: Some(extension), lock: true, ..byte(one(0xfe)) });
        v.push(Form { extension: Some(extension), lock: true, ..one(0xff) });
    }
    v.push(Form { flags: Undefined::Multiply, ..two(0xaf) });
    v.push(Form { flags: Undefined::Multiply, immediate: Immediate::Full, ..one(0x69) });
    v.push(Form { flags: Undefined::Multiply, immediate: Immediate::Byte, ..one(0x6b) });
}

fn shifts(v: &mut Vec<Form>) {
    for extension in 0..8 {
        let flags = if extension < 4 { Undefined::Rotate } else { Undefined::Shift };
        let f = Form { flags, extension: Some(extension), ..BASE };
        v.push(Form { opcode: &[0xc0], immediate: Immediate::Byte, operand: Operand::Byte, ..f });
        v.push(Form { opcode: &[0xc1], immediate: Immediate::Byte, ..f });
        v.push(Form { opcode: &[0xd0], operand: Operand::Byte, ..f });
        v.push(Form { opcode: &[0xd1], ..f });
        v.push(Form { opcode: &[0xd2], operand: Operand::Byte, ..f });
        v.push(Form { opcode: &[0xd3], ..f });
    }
    for op in [0xa4, 0xac] {
        v.push(Form { flags: Undefined::DoubleShift, immediate: Immediate::Byte, ..two(op) });
        v.push(Form { flags: Undefined::DoubleShift, ..two(op + 1) });
    }
}

fn moves(v: &mut Vec<Form>) {
    v.push(byte(one(0x88)));
    v.push(one(0x89));
    v.push(byte(one(0x8a)));
    v.push(one(0x8b));
    v.push(Form { extension: Some(0), immediate: Immediate::Byte, ..byte(one(0xc6)) });
    v.push(Form { extension: Some(0), immediate: Immediate::Full, ..one(0xc7) });
    v.push(one(0x63));
    v.extend([0xb6, 0xb7, 0xbe, 0xbf].map(two));
    v.extend((0x90..=0x9f).map(|op| Form { extension: Some(0), ..byte(two(op)) }));
    v.extend((0x40..=0x4f).map(two));
    v.push(Form { opcode: &[0x0f, 0x38, 0xf0], register: false, ..BASE });
    v.push(Form { opcode: &[0x0f, 0x38, 0xf1], register: false, ..BASE });
    v.push(Form { operand: Operand::Wide, register: false, ..two(0xc3) });
}

fn exchanges(v: &mut Vec<Form>) {
    v.push(Form { lock: true, ..byte(one(0x86)) });
    v.push(Form { lock: true, ..one(0x87) });
    v.push(Form { lock: true, ..byte(two(0xb0)) });
    v.push(Form { lock: true, ..two(0xb1) });
    v.push(Form { lock: true, ..byte(two(0xc0)) });
    v.push(Form { lock: true, ..two(0xc1) });
    v.push(Form { lock: true, register: false, extension: Some(1), operand: Operand::Wide, ..two(0xc7) });
}

fn bits(v: &mut Vec<Form>) {
    for op in [0xa3, 0xab, 0xb3, 0xbb] {
        v.push(Form { lock: op != 0xa3, flags: Undefined::Bit, ..two(op) });
    }
    for extension in 4..8 {
        let f = Form { flags: Undefined::Bit, extension: Some(extension), ..two(0xba) };
        v.push(Form { lock: extension != 4, immediate: Immediate::Byte, ..f });
    }
}

/// One encoded instruction. The memory operand is `[rbx + rsi * scale + disp]`.
#[derive(Clone, Debug)]
pub struct Encoded {
    pub code: Vec<u8>,
    pub form: Form,
    /// Operand size in bytes.
    pub size: u64,
    pub memory: bool,
    immediate: u8,
}

impl Encoded {
    /// A random instruction of `form`. `memory` asks for a memory operand.
    pub fn random(form: Form, memory: bool, r: &mut Random) -> Self {
        let memory = memory || !form.register;
        let mut code = Vec::new();
        let lock = form.lock && memory && r.coin();
        if lock {
            code.push(0xf0);
        }
        let small = form.operand == Operand::Sized && r.below(3) == 0;
        if small {
            code.push(0x66);
        }
        let wide = form.operand != Operand::Byte && !small && r.coin();
        let rex = 0x40 | u8::from(wide) << 3;
        let extended = r.below(4) == 0;
        let rex = rex | if extended && form.extension.is_none() { 4 } else { 0 };
        let has_rex = rex != 0x40 || r.below(3) == 0;
        if has_rex {
            code.push(rex);
        }
        code.extend_from_slice(form.opcode);
        // RSP is not written, RBX and RSI hold addresses.
        let reg = form.extension.unwrap_or(r.pick(&[0, 1, 2, 5, 7]));
        if memory {
            let scale = r.below(4) as u8;
            code.extend([0x44 | reg << 3, scale << 6 | 6 << 3 | 3, r.below(256) as u8]);
        } else {
            code.push(0xc0 | reg << 3 | r.pick(&[0, 1, 2, 3, 5, 6, 7]));
        }
        let size = match form.operand {
            Operand::Byte => 1,
            _ if small => 2,
            _ if wide => 8,
            _ => 4,
        };
        let immediate = r.next() as u8;
        match form.immediate {
            Immediate::None => {}
            Immediate::Byte => code.push(immediate),
            Immediate::Full => {
                let n = if small { 2 } else { 4 };
                code.extend_from_slice(&r.value().to_le_bytes()[..n]);
            }
        }
        Self { code, form, size, memory, immediate }
    }

    /// Bit source in a register with a memory destination: it must be small.
    pub fn bit_string(&self) -> bool {
        self.memory && self.form.flags == Undefined::Bit && self.form.extension.is_none()
    }

    fn count(&self, rcx: u64) -> u64 {
        let count = match (self.form.immediate, self.form.opcode) {
            (Immediate::Byte, _) => u64::from(self.immediate),
            (_, [0xd0 | 0xd1]) => 1,
            _ => rcx & 0xff,
        };
        count & if self.size == 8 { 0x3f } else { 0x1f }
    }

    /// Neither result nor flags are defined.
    pub fn undefined_result(&self, rcx: u64) -> bool {
        self.form.flags == Undefined::DoubleShift && self.count(rcx) > self.size * 8
    }

    /// The status flags undefined after it.
    pub fn undefined_flags(&self, rcx: u64) -> u64 {
        let count = self.count(rcx);
        let overflow = if count != 1 { OF } else { 0 };
        match self.form.flags {
            Undefined::None => 0,
            Undefined::Logic => AF,
            Undefined::Shift if count == 0 => 0,
            Undefined::Shift => AF | overflow | if count >= self.size * 8 { CF } else { 0 },
            Undefined::Rotate if count == 0 => 0,
            Undefined::Rotate => overflow,
            Undefined::DoubleShift if count == 0 => 0,
            Undefined::DoubleShift => AF | overflow,
            Undefined::Bit => OF | SF | AF | PF,
            Undefined::Multiply => SF | ZF | AF | PF,
        }
    }
}
