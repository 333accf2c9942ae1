//! Instructions on emulated MMIO: each form runs once on the device and once on RAM with the same contents, and must
//! leave the same memory, registers and arithmetic flags.

use crate::config::*;
use crate::cpu::*;
use crate::report::*;
use crate::trap::Shared;
use crate::{host, mem, smp, test, trap};
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

#[repr(C, align(4096))]
struct Page([u8; 8192]);
static RAM: Shared<Page> = Shared::new(Page([0; 8192]));
fn ram() -> u64 {
    RAM.get() as *mut _ as u64
}

const INITIAL: [u64; 4] =
    [0x8877_6655_4433_2211, 0xffee_ddcc_bbaa_9900, 0x0f1e_2d3c_4b5a_6978, 0x0123_4567_89ab_cdef];

/// Registers and flags after a form.
#[derive(Clone, Copy, PartialEq)]
struct After {
    rax: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    flags: u64,
}

/// Runs `$code` with RDI (and RSI) at an address and fixed other registers.
macro_rules! on {
    ($address:expr, $($code:literal),+) => {{
        let (mut rax, mut rcx, mut rdx) = (0x1020_3040_5060_7080u64, 0x0000_0000_0000_0003u64, 0x7766_5544_3322_1100u64);
        let (mut rdi, mut rsi) = ($address, $address);
        let flags: u64;
        unsafe {
            asm!("push 0x8d7", "popfq", $($code,)+ "pushfq", "pop {flags}", "cld", flags = out(reg) flags,
                inout("rax") rax, inout("rcx") rcx, inout("rdx") rdx, inout("rdi") rdi, inout("rsi") rsi,
                out("xmm0") _, out("xmm1") _, out("mm0") _)
        }
        After { rax, rcx, rdx, rsi: rsi.wrapping_sub($address), rdi: rdi.wrapping_sub($address), flags: flags & 0x8d5 }
    }};
}

fn set(address: u64) {
    for (i, w) in INITIAL.iter().enumerate() {
        mem::w64(address + 8 * i as u64, *w);
    }
}

fn compare(a: After, b: After, mmio: u64, ram: u64, mask: u64) {
    for i in 0..4 {
        check_eq(mem::r64(mmio + 8 * i), mem::r64(ram + 8 * i), "memory after the instruction");
    }
    check_eq(a.rax, b.rax, "rax");
    check_eq(a.rcx, b.rcx, "rcx");
    check_eq(a.rdx, b.rdx, "rdx");
    check_eq(a.rsi, b.rsi, "rsi");
    check_eq(a.rdi, b.rdi, "rdi");
    check_eq(a.flags & mask, b.flags & mask, "flags");
}

/// `forms!{ name: "instruction", ..; ..}`: one test each, named `mmio/<name>`. An optional mask leaves undefined flags out.
macro_rules! forms {
    ($($f:ident $name:literal $(flags $mask:literal)? : $($code:literal),+;)+) => { $(
        test!($f, concat!("mmio/", $name));
        fn $f() {
            set(MMIO);
            set(ram());
            let a = on!(MMIO, $($code),+);
            let b = on!(ram(), $($code),+);
            #[allow(unused_mut, unused_assignments)]
            let mut mask = 0x8d5;
            $(mask = $mask;)?
            compare(a, b, MMIO, ram(), mask);
        }
    )+ };
}

forms! {
    load8 "mov_load_8": "mov al, [rdi]";
    load8h "mov_load_8_high": "mov ah, [rdi]";
    load16 "mov_load_16": "mov ax, [rdi]";
    load32 "mov_load_32": "mov eax, [rdi]";
    load64 "mov_load_64": "mov rax, [rdi]";
    store8 "mov_store_8": "mov [rdi], al";
    store8h "mov_store_8_high": "mov [rdi], ah";
    store16 "mov_store_16": "mov [rdi], ax";
    store32 "mov_store_32": "mov [rdi], eax";
    store64 "mov_store_64": "mov [rdi], rax";
    store_i8 "mov_store_imm_8": "mov byte ptr [rdi], 0x7f";
    store_i16 "mov_store_imm_16": "mov word ptr [rdi], 0x1234";
    store_i32 "mov_store_imm_32": "mov dword ptr [rdi], 0x12345678";
    store_i64 "mov_store_imm_64_sign_extended": "mov qword ptr [rdi], -2";
    disp "mov_displacement": "mov eax, [rdi + 9]";
    sib "mov_base_index": "mov eax, [rdi + rcx * 4]", "mov [rdi + rcx * 2 + 1], dx";
    addr32 "mov_address_size_32": "mov eax, [edi + 4]";
    movzx8 "movzx_8": "movzx eax, byte ptr [rdi + 1]";
    movzx16 "movzx_16": "movzx rax, word ptr [rdi + 2]";
    movzx816 "movzx_8_to_16": "movzx ax, byte ptr [rdi + 7]";
    movsx8 "movsx_8": "movsx eax, byte ptr [rdi + 7]";
    movsx16 "movsx_16": "movsx rax, word ptr [rdi + 6]";
    movsxd "movsxd": "movsxd rax, dword ptr [rdi + 4]";
    and_mr "and_mem_reg": "and [rdi], eax";
    and_rm "and_reg_mem": "and rax, [rdi]";
    and_mi "and_mem_imm": "and byte ptr [rdi], 0x0f";
    or_mr8 "or_mem_reg_8": "or [rdi], al";
    or_mr64 "or_mem_reg_64": "or [rdi], rax";
    or_mi "or_mem_imm": "or dword ptr [rdi], 0x80000001";
    xor_mr "xor_mem_reg": "xor [rdi], dx";
    xor_rm "xor_reg_mem": "xor ax, [rdi]";
    add_mr "add_mem_reg": "add [rdi], eax";
    add_rm "add_reg_mem": "add rax, [rdi]";
    adc_mr "adc_mem_reg": "stc", "adc [rdi], eax";
    sub_mr "sub_mem_reg": "sub [rdi], rax";
    sub_mi8 "sub_mem_imm_8": "sub word ptr [rdi], 0x21";
    sbb_rm "sbb_reg_mem": "stc", "sbb eax, [rdi]";
    cmp_mr "cmp_mem_reg": "cmp [rdi], eax";
    cmp_rm "cmp_reg_mem": "cmp rax, [rdi]";
    cmp_mi "cmp_mem_imm": "cmp byte ptr [rdi], 0x11";
    test_mr "test_mem_reg": "test [rdi], eax";
    test_mi "test_mem_imm": "test dword ptr [rdi], 0x8000";
    inc32 "inc": "inc dword ptr [rdi]";
    dec8 "dec": "dec byte ptr [rdi]";
    not64 "not": "not qword ptr [rdi]";
    neg16 "neg": "neg word ptr [rdi]";
    shl_i "shl_mem_imm" flags 0xc5: "shl dword ptr [rdi], 4";
    shr_cl "shr_mem_cl" flags 0xc5: "shr qword ptr [rdi], cl";
    sar_1 "sar_mem_1": "sar byte ptr [rdi], 1";
    rol_i "rol_mem_imm" flags 0x01: "rol word ptr [rdi], 5";
    xchg32 "xchg_32": "xchg [rdi], eax";
    xchg8 "xchg_8": "xchg [rdi], al";
    xchg64 "xchg_64": "xchg [rdi], rax";
    cmpxchg_ne "cmpxchg_not_equal": "cmpxchg [rdi], edx";
    cmpxchg_eq "cmpxchg_equal": "mov eax, [rsi]", "lock cmpxchg [rdi], edx";
    xadd "xadd": "lock xadd [rdi], eax";
    lock_or "lock_or": "lock or dword ptr [rdi], 0x10";
    lock_inc "lock_inc": "lock inc word ptr [rdi]";
    bt_i "bt_imm" flags 1: "bt dword ptr [rdi], 4";
    bts_i "bts_imm" flags 1: "bts dword ptr [rdi], 3";
    btr_i "btr_imm" flags 1: "btr qword ptr [rdi], 60";
    btc_i "btc_imm" flags 1: "btc word ptr [rdi], 2";
    bt_r "bts_reg_beyond_the_operand" flags 1: "mov eax, 77", "bts [rdi], eax";
    push_m "push_mem": "push qword ptr [rdi]", "pop rdx";
    pop_m "pop_mem": "push rax", "pop qword ptr [rdi + 8]";
    setcc "setcc": "stc", "setc byte ptr [rdi + 1]";
    cmov "cmov": "stc", "cmovc eax, [rdi]";
    imul_rm "imul_reg_mem" flags 0x801: "imul eax, [rdi]";
    imul_rmi "imul_reg_mem_imm" flags 0x801: "imul edx, [rdi], 3";
    mul_m "mul_mem" flags 0x801: "mul dword ptr [rdi]";
    div_m "div_mem" flags 0: "xor edx, edx", "div dword ptr [rdi]";
    movs_out "movsd_from_device": "mov rdi, rsi", "add rdi, 16", "movsd";
    movsb_rep "rep_movsb_inside": "lea rdi, [rsi + 13]", "mov ecx, 11", "rep movsb";
    movsq_rep "rep_movsq_inside": "lea rdi, [rsi + 16]", "mov ecx, 2", "rep movsq";
    stosb_rep "rep_stosb": "mov ecx, 7", "rep stosb";
    stosw_rep "rep_stosw": "rep stosw";
    stosd_rep "rep_stosd": "rep stosd";
    stosq_rep "rep_stosq": "rep stosq";
    stos_df "rep_stosb_df": "add rdi, 20", "std", "mov ecx, 7", "rep stosb", "cld";
    stos_0 "rep_stos_count_0": "xor ecx, ecx", "rep stosd";
    lodsb "lodsb": "lodsb";
    lodsq_rep "rep_lodsq": "rep lodsq";
    scasb "repne_scasb": "mov al, 0x44", "mov ecx, 16", "repne scasb";
    scasd "scasd": "scasd";
    cmpsb "repe_cmpsb": "mov ecx, 8", "lea rdi, [rsi + 8]", "repe cmpsb";
    cmpsq "cmpsq": "lea rdi, [rsi + 8]", "cmpsq";
    movs_df "rep_movsb_df": "lea rdi, [rsi + 20]", "add rsi, 10", "std", "mov ecx, 5", "rep movsb", "cld";
    movnti "movnti": "movnti [rdi], eax";
    sse_load "movdqu_load": "movdqu xmm0, [rdi]", "movq rax, xmm0";
    sse_store "movdqu_store": "movq xmm0, rax", "pinsrw xmm0, edx, 6", "movdqu [rdi + 16], xmm0";
    movups "movups_store": "movq xmm1, rdx", "movups [rdi], xmm1";
    cmpxchg8b "cmpxchg8b": "push rbx", "mov eax, [rdi]", "mov edx, [rdi + 4]", "mov ebx, 0x1111", "mov ecx, 0x2222",
        "cmpxchg8b [rdi]", "pop rbx";
    xlat "xlat": "push rbx", "mov rbx, rdi", "mov al, 5", "xlatb", "pop rbx";
    bsf "bsf" flags 0x40: "bsf rax, [rdi]";
    bsr "bsr" flags 0x40: "bsr eax, [rdi]";
    smsw "smsw": "smsw [rdi]";
    lmsw "lmsw": "smsw [rdi + 8]", "lmsw [rdi + 8]";
    sldt "sldt": "sldt [rdi]";
    str_m "str": "str [rdi + 8]";
    mov_ds "mov_ds": "mov word ptr [rdi], 0x10", "mov ds, [rdi]";
    mov_ss "mov_ss": "mov word ptr [rdi], 0x10", "mov ss, [rdi]";
    lss "lss": "mov dword ptr [rdi], 0x12345678", "mov word ptr [rdi + 4], 0x10", "lss ecx, [rdi]";
    jmp_far "jmp_far": "lea rcx, [rip + 2f]", "mov [rdi], ecx", "mov word ptr [rdi + 4], 8", "jmp fword ptr [rdi]", "ud2",
        "2: mov [rdi], rax", "xor ecx, ecx";
    call_far "call_far": "lea rcx, [rip + 2f]", "mov [rdi], ecx", "mov word ptr [rdi + 4], 8", "call fword ptr [rdi]", "ud2",
        "2: pop rcx", "mov [rdi], rax", "xor ecx, ecx";
    ret "ret": "mov rdx, rsp", "lea rcx, [rip + 2f]", "mov [rdi + 8], rcx", "lea rsp, [rdi + 8]", "ret", "ud2",
        "2: mov rsp, rdx", "mov [rdi + 8], rax", "xor ecx, ecx";
    call_rel "call_stack": "mov rdx, rsp", "lea rsp, [rdi + 16]", "call 2f", "ud2", "2: mov rsp, rdx", "mov [rdi + 8], rax";
    frame "enter_leave": "mov rdx, rsp", "mov rcx, rbp", "lea rsp, [rdi + 24]", "enter 8, 0", "leave", "mov rsp, rdx",
        "mov rbp, rcx";
    pushf "pushf_popf": "mov rdx, rsp", "lea rsp, [rdi + 24]", "stc", "pushfq", "clc", "popfq", "mov rsp, rdx";
    push_fs "push_fs": "mov rdx, rsp", "lea rsp, [rdi + 24]", "push fs", "mov rsp, rdx";
    mmx "movq_mmx": "movq mm0, [rdi]", "movq [rdi + 16], mm0", "emms";
    movaps "movaps": "movaps xmm0, [rdi]", "movaps [rdi + 16], xmm0";
    fnstcw "fnstcw": "fninit", "fnstcw [rdi + 2]";
    fnstsw "fnstsw": "fninit", "fnstsw [rdi + 4]";
    clflush "clflush": "clflush [rdi]";
    enter "call_mem_target": "lea rax, [rip + 3f]", "mov [rdi], rax", "push 0", "call [rdi]", "jmp 4f", "3: ret", "4: pop rax",
        "xor eax, eax", "mov [rdi], rax";
}

test!(ltr, "mmio/ltr");
fn ltr() {
    const BUSY: u64 = 2 << 40;
    let d = trap::gdt_entry(0x40);
    unsafe { d.write_volatile(d.read_volatile() & !BUSY) };
    mem::w16(MMIO, 0x40);
    unsafe { asm!("ltr word ptr [{}]", in(reg) MMIO) };
    check(unsafe { d.read_volatile() } & BUSY != 0, "the TSS is busy");
    trap::expect(13, 0x40, "a busy TSS", || unsafe { asm!("ltr word ptr [{}]", in(reg) MMIO) });
}

/// FADD [RAX], which no emulator does: on this machine in a device.
const FADD: [u8; 2] = [0xd8, 0x00];

test!(unknown_user, "mmio/unknown_instruction_of_user_code");
fn unknown_user() {
    let (text, at) = (user_page(&FADD), mem::FREE_VA + 0x60_0000);
    mem::map(at, MMIO, mem::P | mem::W | mem::U);
    let c = trap::user(text, text, at);
    check_eq(c.vector, 6, "undefined opcode");
    check_eq(c.rip, text, "at the instruction");
}

test!(unknown_kernel, "mmio/unknown_instruction_of_the_kernel");
fn unknown_kernel() {
    host::expect_exit(17);
    unsafe { asm!("fadd dword ptr [{}]", in(reg) MMIO) };
}

/// Code for CPL 3 on a page of its own; where it runs.
fn user_page(code: &[u8]) -> u64 {
    let (text, va) = (mem::page(), mem::FREE_VA + 0x50_0000);
    mem::map(va, text, mem::P | mem::U);
    unsafe { *(PML4 as *mut u64).add((va >> 39) as usize & 511) |= mem::U };
    for (i, b) in code.iter().enumerate() {
        mem::w8(text + i as u64, *b);
    }
    va
}

/// User code that loads from the device `at` 400 times a round, while another CPU writes the two bytes `other` over the load, and
/// back, all the time. 100 rounds, each to its end or to the first fault, which must be `vector`.
fn rewrite(at: u64, other: u16, vector: u64) {
    const LOAD: u16 = 0x008b;
    // mov edx, PIO_RAM; mov ebx, 400; 1: mov eax, [rax]; mov rax, rdi; dec ebx; jnz 1b; int3
    let port = PIO_RAM.to_le_bytes();
    let code = [
        0xba, port[0], port[1], 0, 0, 0xbb, 0x90, 1, 0, 0, 0x48, 0x89, 0xc7, 0x90, 0x8b, 0x00, 0x48, 0x89,
        0xf8, 0xff, 0xcb, 0x75, 0xf7, 0xcc,
    ];
    let text = user_page(&code);
    PLACE.store(unsafe { *mem::entry(text, 1) } & 0x000f_ffff_ffff_f000 | 14, Ordering::SeqCst);
    OTHER.store(u64::from(other), Ordering::SeqCst);
    smp::start_all(2);
    smp::run(1, || {
        let place = PLACE.load(Ordering::SeqCst);
        loop {
            mem::w16(place, OTHER.load(Ordering::SeqCst) as u16);
            mem::w16(place, LOAD);
        }
    });
    for _ in 0..100 {
        let c = trap::user(text, text, at);
        if c.vector != 3 {
            check_eq(c.vector, vector, "the fault of what was written");
        }
    }
}

static PLACE: AtomicU64 = AtomicU64::new(0);
static OTHER: AtomicU64 = AtomicU64::new(0);

test!(port_race, "mmio/load_becomes_out", cpus(2) | timeout(60));
fn port_race() {
    let at = mem::FREE_VA + 0x60_0000;
    mem::map(at, MMIO, mem::P | mem::U);
    outb(PIO_RAM, 0xaa);
    // out dx, al; the load's second byte stays: an emulator that fetches the two apart must not find a third instruction.
    rewrite(at, 0x00ee, 13);
    check_eq(inb(PIO_RAM) as u64, 0xaa, "a port that user code may not write");
}

test!(store_race, "mmio/load_becomes_store", cpus(2) | timeout(60));
fn store_race() {
    let at = mem::FREE_VA + 0x60_0000;
    mem::map(at, MMIO, mem::P | mem::U);
    let before = mem::r32(MMIO);
    // mov [rax], eax
    rewrite(at, 0x0089, 14);
    check_eq(mem::r32(MMIO) as u64, before as u64, "a device that user code may only read");
}

fn fresh_log() -> (usize, [[u64; 3]; 64]) {
    let mut log = [[0; 3]; 64];
    let n = host::mmio_log(&mut log);
    (n, log)
}

test!(one_access, "mmio/exactly_one_access");
fn one_access() {
    fresh_log();
    mem::w32(MMIO + 0x20, 0xaabb_ccdd);
    let (n, l) = fresh_log();
    check_eq(n as u64, 1, "accesses");
    check_eq(l[0][0], MMIO + 0x20, "address");
    check_eq(l[0][1], 4 | 1 << 32, "length and direction");
    check_eq(l[0][2], 0xaabb_ccdd, "data");
    mem::r16(MMIO + 0x22);
    let (n, l) = fresh_log();
    check_eq(n as u64, 1, "accesses of a load");
    check_eq(l[0][1], 2, "length and direction of a load");
}

test!(rmw_accesses, "mmio/read_then_write");
fn rmw_accesses() {
    fresh_log();
    unsafe { asm!("or dword ptr [{}], 1", in(reg) MMIO + 0x20) };
    let (n, l) = fresh_log();
    check_eq(n as u64, 2, "accesses");
    check_eq(l[0][1] >> 32, 0, "first a read");
    check_eq(l[1][1] >> 32, 1, "then a write");
    unsafe { asm!("test dword ptr [{}], 1", in(reg) MMIO + 0x20) };
    check_eq(fresh_log().0 as u64, 1, "TEST only reads");
}

test!(sixteen, "mmio/sixteen_bytes_are_two_accesses");
fn sixteen() {
    fresh_log();
    unsafe { asm!("pxor xmm0, xmm0", "movdqu [{}], xmm0", in(reg) MMIO, out("xmm0") _) };
    let (n, l) = fresh_log();
    check_eq(n as u64, 2, "accesses");
    check_eq(l[0][1], 8 | 1 << 32, "first half");
    check_eq(l[1][0], MMIO + 8, "second half");
}

test!(cross_in, "mmio/load_across_ram_and_device");
fn cross_in() {
    mem::w32(MMIO - 4, 0x4433_2211);
    mem::w32(MMIO, 0x8877_6655);
    check_eq(mem::r64(MMIO - 4), 0x8877_6655_4433_2211, "8 bytes");
    check_eq(mem::r32(MMIO - 1) as u64, 0x7766_5544, "4 bytes");
    check_eq(mem::r16(MMIO - 1) as u64, 0x5544, "2 bytes");
}

test!(cross_out, "mmio/store_across_ram_and_device");
fn cross_out() {
    mem::w64(MMIO - 8, 0);
    mem::w64(MMIO, 0);
    mem::w64(MMIO - 3, 0x1122_3344_5566_7788);
    check_eq(mem::r64(MMIO - 8) >> 40, 0x66_7788, "RAM part");
    check_eq(mem::r64(MMIO), 0x11_2233_4455, "device part");
}

test!(cross_high, "mmio/store_across_device_and_ram");
fn cross_high() {
    mem::w64(EDGE_HIGH, 0);
    mem::w64(EDGE_HIGH - 2, 0x1122_3344_5566_7788);
    check_eq(mem::r16(EDGE_HIGH - 2) as u64, 0x7788, "device part");
    check_eq(mem::r64(EDGE_HIGH), 0x1122_3344_5566, "RAM part");
}

test!(cross_pages, "mmio/access_across_device_pages");
fn cross_pages() {
    mem::w64(MMIO + 0xffc, 0x0102_0304_0506_0708);
    check_eq(mem::r32(MMIO + 0xffc) as u64, 0x0506_0708, "first page");
    check_eq(mem::r32(MMIO + 0x1000) as u64, 0x0102_0304, "second page");
    check_eq(mem::r64(MMIO + 0xffc), 0x0102_0304_0506_0708, "both");
}

test!(rep_across, "mmio/rep_movsb_ram_to_device_across_pages");
fn rep_across() {
    let src = ram();
    for i in 0..200 {
        mem::w8(src + i, i as u8 ^ 0x33);
    }
    unsafe {
        asm!("rep movsb", inout("rsi") src => _, inout("rdi") MMIO + 0xfa0 => _, inout("rcx") 200u64 => _)
    };
    for i in 0..200 {
        check_eq(mem::r8(MMIO + 0xfa0 + i) as u64, (i as u8 ^ 0x33) as u64, "byte");
    }
}

test!(rep_back, "mmio/rep_movsd_device_to_ram");
fn rep_back() {
    let dst = ram() + 0xff0;
    unsafe {
        asm!("rep movsd", inout("rsi") MMIO + 0x100 => _, inout("rdi") dst => _, inout("rcx") 32u64 => _)
    };
    for i in 0..128 {
        check_eq(mem::r8(dst + i) as u64, mmio_pattern(MMIO + 0x100 + i) as u64, "byte");
    }
}

test!(rep_into, "mmio/rep_stosb_from_ram_into_device");
fn rep_into() {
    // Starts in RAM below the device and ends inside it: the string changes over in the middle.
    unsafe { asm!("rep stosb", inout("rdi") MMIO - 16 => _, inout("rcx") 32u64 => _, in("al") 0x5au8) };
    check_eq(mem::r64(MMIO - 8), 0x5a5a_5a5a_5a5a_5a5a, "RAM part");
    check_eq(mem::r64(MMIO + 8), 0x5a5a_5a5a_5a5a_5a5a, "device part");
    check_eq(mem::r8(MMIO + 16) as u64, mmio_pattern(MMIO + 16) as u64, "the byte after");
}

test!(alias, "mmio/through_another_mapping");
fn alias() {
    let va = mem::FREE_VA + 0x30_0000;
    mem::map(va, MMIO + 0x1000, mem::P | mem::W);
    mem::w32(va + 0x10, 0x1357_9bdf);
    check_eq(mem::r32(MMIO + 0x1010) as u64, 0x1357_9bdf, "through the identity map");
    mem::map(va, MMIO + 0x2000, mem::P | mem::W);
    check_eq(mem::r8(va) as u64, mmio_pattern(MMIO + 0x2000) as u64, "mapped elsewhere");
    mem::map(va, ram(), mem::P | mem::W);
    mem::w32(va, 0x2468);
    check_eq(mem::r32(ram()) as u64, 0x2468, "mapped to RAM");
}

test!(code_across, "mmio/instruction_across_pages");
fn code_across() {
    // `mov [rdi], eax; ret` with its bytes on two pages that are not adjacent in physical memory.
    let (a, _gap, b) = (mem::page(), mem::page(), mem::page());
    let va = mem::FREE_VA + 0x40_0000;
    mem::map(va, a, mem::P);
    mem::map(va + 0x1000, b, mem::P);
    mem::w8(a + 0xfff, 0x89);
    mem::w8(b, 0x07);
    mem::w8(b + 1, 0xc3);
    unsafe { asm!("call {}", in(reg) va + 0xfff, in("rdi") MMIO + 0x40, in("rax") 0x7531) };
    check_eq(mem::r32(MMIO + 0x40) as u64, 0x7531, "stored");
}

test!(segment, "mmio/fs_relative");
fn segment() {
    wrmsr(0xc000_0100, MMIO);
    let v: u32;
    unsafe { asm!("mov dword ptr fs:[0x50], 0x11223344", "mov {0:e}, fs:[0x50]", out(reg) v) };
    check_eq(v as u64, 0x1122_3344, "through FS");
    check_eq(mem::r32(MMIO + 0x50) as u64, 0x1122_3344, "same place");
}

test!(rip_relative, "mmio/sp_relative");
fn rip_relative() {
    // RSP itself in the device page: pushes and pops are MMIO.
    let v: u64;
    unsafe {
        asm!("mov rcx, rsp", "mov rsp, {s}", "push rax", "push 0x77", "pop rdx", "pop rax", "mov rsp, rcx",
            s = in(reg) MMIO + 0x808, in("rax") 0x55aau64, out("rcx") _, out("rdx") v)
    }
    check_eq(v, 0x77, "popped");
    check_eq(mem::r64(MMIO + 0x800), 0x55aa, "pushed");
}

test!(fetch, "mmio/instruction_fetch_from_device");
fn fetch() {
    // Nothing can execute there: user space gets an emulation failure, no hang and no crash.
    host::expect_exit(17);
    let f: extern "C" fn() = unsafe { core::mem::transmute(0xd030_0000u64) };
    f();
}

test!(page_table, "mmio/cr3_on_device");
fn page_table() {
    // Page tables in a hole: KVM spins in its retry path; whatever happens, the vCPU can still be kicked out.
    host::after(300_000, op::PASS, &[]);
    host::expect_exit(8);
    set_cr3(0xd030_0000);
    mem::r8(0);
}
