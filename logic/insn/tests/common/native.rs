//! Executes one instruction on the real processor with given registers, flags and memory.

use std::arch::global_asm;
use std::sync::{Mutex, MutexGuard, OnceLock};

/// Registers in encoding order, then RFLAGS.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub gpr: [u64; 16],
    pub rflags: u64,
}

global_asm!(
    ".pushsection .bss",
    ".balign 8",
    "insn_native_state: .skip 8",
    "insn_native_stack: .skip 8",
    "insn_native_code: .skip 8",
    "insn_native_rdi: .skip 8",
    ".popsection",
    ".globl insn_native_run",
    "insn_native_run:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rip + insn_native_state], rdi",
    "mov [rip + insn_native_stack], rsp",
    "mov [rip + insn_native_code], rsi",
    "push qword ptr [rdi + 128]",
    "popfq",
    "mov rax, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rbx, [rdi + 24]",
    "mov rsp, [rdi + 32]",
    "mov rbp, [rdi + 40]",
    "mov rsi, [rdi + 48]",
    "mov r8, [rdi + 64]",
    "mov r9, [rdi + 72]",
    "mov r10, [rdi + 80]",
    "mov r11, [rdi + 88]",
    "mov r12, [rdi + 96]",
    "mov r13, [rdi + 104]",
    "mov r14, [rdi + 112]",
    "mov r15, [rdi + 120]",
    "mov rdi, [rdi + 56]",
    "jmp qword ptr [rip + insn_native_code]",
    ".globl insn_native_back",
    "insn_native_back:",
    "mov [rip + insn_native_rdi], rdi",
    "mov rdi, [rip + insn_native_state]",
    "mov [rdi], rax",
    "mov [rdi + 8], rcx",
    "mov [rdi + 16], rdx",
    "mov [rdi + 24], rbx",
    "mov [rdi + 32], rsp",
    "mov [rdi + 40], rbp",
    "mov [rdi + 48], rsi",
    "mov [rdi + 64], r8",
    "mov [rdi + 72], r9",
    "mov [rdi + 80], r10",
    "mov [rdi + 88], r11",
    "mov [rdi + 96], r12",
    "mov [rdi + 104], r13",
    "mov [rdi + 112], r14",
    "mov [rdi + 120], r15",
    "mov rax, [rip + insn_native_rdi]",
    "mov [rdi + 56], rax",
    "mov rsp, [rip + insn_native_stack]",
    "pushfq",
    "pop qword ptr [rdi + 128]",
    "cld",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

unsafe extern "sysv64" {
    fn insn_native_run(state: *mut State, code: *const u8);
    fn insn_native_back();
}

/// Bytes of data memory around which instructions work.
pub const DATA_LEN: usize = 0x4000;

/// One page of code and some data, below 2 GiB so that 32-bit addresses reach it.
pub struct Native {
    code: *mut u8,
    data: *mut u8,
}

// SAFETY: the mappings live for the whole process and are used under the mutex of `native` only.
unsafe impl Send for Native {}

/// The one native machine; its statics serve one caller at a time.
pub fn native() -> MutexGuard<'static, Native> {
    static NATIVE: OnceLock<Mutex<Native>> = OnceLock::new();
    NATIVE.get_or_init(|| Mutex::new(Native::new())).lock().unwrap_or_else(|e| e.into_inner())
}

impl Native {
    fn new() -> Self {
        let map = |len: usize, prot: i32| {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
            // SAFETY: a fresh anonymous mapping aliases nothing.
            let p = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
            assert_ne!(p, libc::MAP_FAILED);
            p.cast::<u8>()
        };
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        Self { code: map(4096, rw | libc::PROT_EXEC), data: map(DATA_LEN, rw) }
    }

    /// Address of the data memory.
    pub fn data_address(&self) -> u64 {
        self.data as u64
    }

    /// Runs `code`, one instruction that does not branch, with `state` and `data` as data memory. RSP must be in
    /// data memory when the instruction uses the stack.
    pub fn run(&mut self, code: &[u8], state: &mut State, data: &mut [u8]) {
        assert_eq!(data.len(), DATA_LEN);
        let mut bytes = code.to_vec();
        bytes.extend([0xff, 0x25, 0, 0, 0, 0]);
        bytes.extend((insn_native_back as *const () as u64).to_le_bytes());
        // SAFETY: both mappings are larger than what is copied; the instruction is one the caller vouches for, and
        // the jump after it leads back to the trampoline, which restores everything the ABI asks for.
        unsafe {
            std::ptr::copy_nonoverlapping(data.as_ptr(), self.data, DATA_LEN);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.code, bytes.len());
            insn_native_run(state, self.code);
            std::ptr::copy_nonoverlapping(self.data, data.as_mut_ptr(), DATA_LEN);
        }
    }
}
