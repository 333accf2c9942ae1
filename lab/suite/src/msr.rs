//! MSRs: what a guest did to each of them is saved, restored on another vCPU, and found there by the guest.

use crate::env::*;
use exitless_runner::kvm::{self, Flex, nr, zeroed};
use kvm_bindings::*;

pub(crate) const TESTS: &[Test] =
    &[("msr/whatever_a_guest_wrote", whatever_a_guest_wrote), ("msr/async_pf", async_pf)];

/// Rounds of random values for every MSR.
const ROUNDS: u64 = 6;

const WRITE: u64 = ENTRY;
const READ: u64 = ENTRY + 0x10;
const GP_HANDLER: u64 = ENTRY + 0x20;
const DONE: u16 = 0x11;
const FAULT: u16 = 0x12;

/// A guest that executes one RDMSR or WRMSR at a time.
struct Guest(Small);

impl Guest {
    fn new(e: &Env) -> Result<Guest, Stop> {
        let g = e.guest(Chips::Full, &[])?;
        g.mem.write(WRITE, &[0x0f, 0x30, 0xe6, DONE as u8]);
        g.mem.write(READ, &[0x0f, 0x32, 0xe6, DONE as u8]);
        g.mem.write(GP_HANDLER, &[0xe6, FAULT as u8]);
        g.mem.write(13 * 4, &(GP_HANDLER as u32).to_le_bytes());
        Ok(Guest(g))
    }

    /// EDX:EAX afterwards; `None`: #GP.
    fn access(&self, rip: u64, msr: u32, value: u64) -> Result<Option<u64>, Stop> {
        let (rcx, rax, rdx) = (msr.into(), value & 0xffff_ffff, value >> 32);
        let vcpu = &self.0.vcpu;
        vcpu.fd.set(
            nr::SET_REGS,
            &kvm_regs { rip, rcx, rax, rdx, rsp: 0x800, rflags: 2, ..Default::default() },
        )?;
        vcpu.run_to(KVM_EXIT_IO)?;
        let r = vcpu.regs()?;
        match vcpu.io().0 {
            DONE => Ok(Some(r.rdx << 32 | r.rax & 0xffff_ffff)),
            FAULT => Ok(None),
            other => Err(Stop::Fail(format!("port {other:#x} after MSR {msr:#x}"))),
        }
    }

    fn write(&self, msr: u32, value: u64) -> Result<bool, Stop> {
        Ok(self.access(WRITE, msr, value)?.is_some())
    }

    fn read(&self, msr: u32) -> Result<Option<u64>, Stop> {
        self.access(READ, msr, 0)
    }
}

/// xorshift64.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// All kinds of values: anything, small ones, single bits, addresses.
fn value(msr: u32, r: &mut u64) -> u64 {
    let any = random(r);
    let v = match random(r) % 5 {
        0 => any,
        1 => any & 0xf,
        2 => 1 << (any & 63),
        3 => any & 0xffff_ffff,
        _ => ((any << 16).cast_signed() >> 16).cast_unsigned(),
    };
    match msr {
        // A CPU faults on addresses that are not canonical; QEMU's takes them.
        0xc000_0082 | 0xc000_0083 | 0xc000_0102 => ((v << 16).cast_signed() >> 16).cast_unsigned(),
        // Pages that the host writes: beyond memory, or where nothing else is.
        0x11 | 0x12 | 0x4b56_4d00..=0x4b56_4dff if v >> 20 == 0 => 0x8_0000 | v & 0x3f,
        0x11 | 0x12 | 0x4b56_4d00..=0x4b56_4dff => v | 1 << 40,
        _ => v,
    }
}

/// The listed MSRs, without those that stock KVM alone lists and treats in its own way (Hyper-V's, what describes the host), and that of
/// asynchronous page faults, which is refused where no memory is: [`async_pf`].
fn listed(sys: &kvm::Fd) -> Result<Vec<u32>, Stop> {
    let mut l: Box<Flex<u32, u32, 1024>> = zeroed();
    l.head = 1024;
    sys.with(nr::GET_MSR_INDEX_LIST, &mut *l)?;
    let own = |m: &u32| matches!(m, 0x4000_0000..0x4000_1000 | 0x345 | 0x480..0x4a0 | 0xc001_1020..0xc001_1030 | 0x4b56_4d02);
    Ok(l.entries[..l.head as usize].iter().copied().filter(|m| !own(m)).collect())
}

fn whatever_a_guest_wrote(e: &Env) -> R {
    let mut r = 0x9e37_79b9_7f4a_7c15;
    let mut bad = Vec::new();
    for round in 0..ROUNDS {
        let (from, to) = (Guest::new(e)?, Guest::new(e)?);
        let list = listed(&from.0.sys)?;
        let mut taken = 0;
        for &m in &list {
            taken += u32::from(from.write(m, value(m, &mut r))?);
        }
        ensure!(taken > 10, "the guest's writes fault: {taken} of {} did not", list.len());
        for &m in &list {
            // Time goes on between two reads.
            let moves = m == 0x10;
            let seen = from.read(m)?;
            let Some(saved) = kvm::get_msr(&from.0.vcpu.fd, m)? else {
                bad.push(format!("{m:#x} cannot be read"));
                continue;
            };
            if seen.is_some_and(|seen| seen != saved) && !moves {
                bad.push(format!("{m:#x} is {seen:x?} to the guest and {saved:#x} to the host"));
            }
            if !kvm::set_msr(&to.0.vcpu.fd, m, saved)? {
                bad.push(format!("{m:#x} refuses {saved:#x}"));
                continue;
            }
            let restored = kvm::get_msr(&to.0.vcpu.fd, m)?;
            if restored != Some(saved) && !moves {
                bad.push(format!("{m:#x} is {restored:x?} after {saved:#x} was set"));
            }
            if to.read(m)? != seen && !moves {
                bad.push(format!("{m:#x} is not {seen:x?} to the restored guest"));
            }
        }
        ensure!(bad.is_empty(), "round {round}: {}", bad.join(", "));
    }
    Ok(())
}

/// What migration does with the MSRs of asynchronous page faults; who has no APIC in the kernel has none of them.
fn async_pf(e: &Env) -> R {
    const EN: u32 = 0x4b56_4d02;
    const INT: u32 = 0x4b56_4d06;
    const ACK: u32 = 0x4b56_4d07;
    let g = e.idle(Chips::Full)?;
    let cpuid = kvm::supported_cpuid(&g.sys)?;
    let shown = cpuid.entries.iter().find(|e| e.function == 0x4000_0001).map_or(0, |e| e.eax);
    same!(shown & (1 << 4 | 1 << 14), 1 << 4 | 1 << 14, "CPUID");
    let fd = &g.vcpu.fd;
    for (msr, value, taken) in [
        (INT, 0x61, true),
        (INT, 0x100, false),
        (EN, 0x8_0000 | 0xb, true),
        (EN, 0x8_0000 | 0xf, true),
        (EN, 0x8_0000 | 0x1b, false),
        (EN, 0x8_0000 | 0x2b, false),
        (ACK, 1, true),
        (ACK, 0, true),
    ] {
        same!(kvm::set_msr(fd, msr, value)?, taken, "{msr:#x} = {value:#x}");
    }
    same!(kvm::get_msr(fd, EN)?, Some(0x8_000f), "MSR_KVM_ASYNC_PF_EN");
    same!(kvm::get_msr(fd, INT)?, Some(0x61), "MSR_KVM_ASYNC_PF_INT");
    same!(kvm::get_msr(fd, ACK)?, Some(0), "MSR_KVM_ASYNC_PF_ACK");
    ensure!(!kvm::set_msr(fd, EN, 1 << 40 | 9)?, "words where no memory is");
    ensure!(kvm::set_msr(fd, EN, 0)?, "off");
    let g = e.idle(Chips::None)?;
    let fd = &g.vcpu.fd;
    for (msr, value, taken) in [(EN, 0, true), (EN, 0x8_0009, false), (INT, 0x61, false), (INT, 0, false)] {
        same!(kvm::set_msr(fd, msr, value)?, taken, "without an APIC: {msr:#x} = {value:#x}");
    }
    Ok(())
}
