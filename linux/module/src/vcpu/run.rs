//! `KVM_RUN`: around the hall's loop, and the exit for user space.

use super::VcpuObj;
use super::host::RunHost;
use crate::runpage::EXIT;
use crate::vendor::Vendor;
use core::mem::offset_of;
use core::sync::atomic::Ordering;
use exitless_host::task::SignalMask;
use exitless_host::{Errno, Result, trace};
use exitless_kvm_abi as abi;
use exitless_vcpu::journal::Access;
use exitless_vcpu::{RunExit, Vcpu, entry};
use exitless_x86::regs::rflags;

/// Runs until user space is needed. The caller holds the vCPU's lock and has it loaded.
pub fn run<B: Vendor>(v: &VcpuObj, inner: &mut Vcpu<B>) -> Result<isize> {
    let mask = v.has_sigmask.load(Ordering::Relaxed).then(|| v.sigmask.load(Ordering::Relaxed));
    let _signals = mask.map(SignalMask::activate);
    let page = v.run_page();
    let vm = v.vm();
    // Only user space's 8259 pair or APIC needs windows.
    inner.want_window = page.request_interrupt_window() && !vm.irqchip.load(Ordering::Acquire);
    if !vm.lapics.load(Ordering::Acquire) {
        inner.take_user_tpr(&v.shared, page.u64_at(offset_of!(abi::kvm_run, cr8)));
    }
    v.task.record_current();
    let host = RunHost::running(vm, v);
    host.lock();
    // SAFETY: process context; `put_guest` follows on the same thread.
    unsafe { v.fpu.load_guest() };
    if trace::wanted() {
        trace::fpu(true);
    }
    let exit = exitless_vcpu::run(inner, &v.shared, &host);
    // SAFETY: the pair of `load_guest` above.
    unsafe { v.fpu.put_guest() };
    host.unlock();
    common(v, inner, &host);
    let done = report(v, exit);
    if trace::wanted() {
        trace::fpu(false);
        trace::user_exit(
            page.u32_at(offset_of!(abi::kvm_run, exit_reason)),
            done.as_ref().map_or_else(|e| e.to_int(), |_| 0),
        );
    }
    done
}

/// Fields user space reads after every run.
fn common<B: Vendor>(v: &VcpuObj, inner: &Vcpu<B>, host: &RunHost<'_, B>) {
    let p = v.run_page();
    let open = inner.b.rflags() & rflags::IF != 0;
    let ready = v.vm().irqchip.load(Ordering::Acquire) || entry::ready_for_user(inner, &v.shared, host);
    p.put_u8(offset_of!(abi::kvm_run, if_flag), u8::from(open));
    p.put_u8(offset_of!(abi::kvm_run, ready_for_interrupt_injection), u8::from(ready));
    p.put_u16(offset_of!(abi::kvm_run, flags), 0);
    p.put_u64(offset_of!(abi::kvm_run, cr8), u64::from(inner.lapic.cr8()));
    p.put_u64(offset_of!(abi::kvm_run, apic_base), inner.lapic.apic_base());
}

/// Fills `kvm_run` for the exit.
fn report(v: &VcpuObj, exit: RunExit) -> Result<isize> {
    let p = v.run_page();
    match exit {
        RunExit::Interrupted => {
            // User space that asked for an immediate exit, to complete the access of an exit it is still reading, finds
            // that exit's reason and fields unchanged.
            if !p.immediate_exit() {
                p.set_exit_reason(abi::KVM_EXIT_INTR);
            }
            return Err(Errno::EINTR);
        }
        RunExit::Error(e) => return Err(Errno::from_ret(e)),
        RunExit::Io { port, size, count, input } => {
            p.set_exit_reason(abi::KVM_EXIT_IO);
            p.put_u8(EXIT + offset_of!(abi::kvm_run_io, direction), u8::from(!input));
            p.put_u8(EXIT + offset_of!(abi::kvm_run_io, size), size);
            p.put_u16(EXIT + offset_of!(abi::kvm_run_io, port), port);
            p.put_u32(EXIT + offset_of!(abi::kvm_run_io, count), count);
            p.put_u64(EXIT + offset_of!(abi::kvm_run_io, data_offset), 4096);
        }
        RunExit::Mmio(e) => {
            p.set_exit_reason(abi::KVM_EXIT_MMIO);
            let gpa = match e.access {
                Access::Mmio { gpa } => gpa,
                Access::Port { port } => u64::from(port),
            };
            p.put_u64(EXIT + offset_of!(abi::kvm_run_mmio, phys_addr), gpa);
            p.put_bytes(EXIT + offset_of!(abi::kvm_run_mmio, data), &e.data);
            p.put_u32(EXIT + offset_of!(abi::kvm_run_mmio, len), u32::from(e.len));
            p.put_u8(EXIT + offset_of!(abi::kvm_run_mmio, is_write), u8::from(e.write));
        }
        RunExit::Hlt => p.set_exit_reason(abi::KVM_EXIT_HLT),
        RunExit::Shutdown => p.set_exit_reason(abi::KVM_EXIT_SHUTDOWN),
        RunExit::FailEntry(code) => {
            p.set_exit_reason(abi::KVM_EXIT_FAIL_ENTRY);
            p.put_u64(EXIT, code);
            p.put_u32(EXIT + 8, v.shared.cpu.load(Ordering::Relaxed) as u32);
        }
        RunExit::Internal { suberror, data, ndata } => {
            p.set_exit_reason(abi::KVM_EXIT_INTERNAL_ERROR);
            p.put_u32(EXIT, suberror);
            p.put_u32(EXIT + 4, ndata);
            for (i, w) in data.iter().enumerate() {
                p.put_u64(EXIT + 8 + i * 8, *w);
            }
        }
        RunExit::Unknown(code) => {
            p.set_exit_reason(abi::KVM_EXIT_UNKNOWN);
            p.put_u64(EXIT, code);
        }
        RunExit::Debug { exception, pc, dr6, dr7 } => {
            p.set_exit_reason(abi::KVM_EXIT_DEBUG);
            p.put_u32(EXIT, exception);
            p.put_u64(EXIT + 8, pc);
            p.put_u64(EXIT + 16, dr6);
            p.put_u64(EXIT + 24, dr7);
        }
        RunExit::IrqWindowOpen => p.set_exit_reason(abi::KVM_EXIT_IRQ_WINDOW_OPEN),
        RunExit::SetTpr => p.set_exit_reason(abi::KVM_EXIT_SET_TPR),
        RunExit::IoapicEoi { vector } => {
            p.set_exit_reason(abi::KVM_EXIT_IOAPIC_EOI);
            p.put_u8(EXIT, vector);
        }
    }
    Ok(0)
}
