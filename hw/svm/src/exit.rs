//! From #VMEXIT codes to the hall's words.

use crate::inject;
use crate::vcpu::Svm;
use exitless_vcpu::backend::{Exit, IoAccess, SlatFault, TaskSource, TaskSwitch};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::dr6;
use exitless_x86::svm::avic::{Incomplete, noaccel};
use exitless_x86::svm::{ExitCode as C, ioio, npf, task_switch as ts};

impl Svm {
    pub(crate) fn decode_exit(&self) -> Exit {
        let c = self.control();
        match C(c.exit_code) {
            C::INTR => Exit::ExternalInterrupt,
            C::NMI => Exit::Nmi,
            C::SMI | C::INIT => Exit::HostEvent,
            C::VINTR => Exit::InterruptWindow,
            C::IRET => Exit::NmiWindow,
            C::CPUID => Exit::Cpuid,
            C::HLT => Exit::Hlt,
            C::IOIO => Exit::Io(io(c.exit_info_1)),
            C::MSR if c.exit_info_1 & 1 == 0 => Exit::Rdmsr,
            C::MSR => Exit::Wrmsr,
            C::NPF => Exit::Slat(slat(c.exit_info_1, c.exit_info_2)),
            C::AVIC_INCOMPLETE_IPI if self.avic_on() => {
                Exit::IncompleteIpi(c.exit_info_1, Incomplete((c.exit_info_2 >> 32) as u32))
            }
            C::AVIC_NOACCEL if self.avic_on() => Exit::Unaccelerated(
                (c.exit_info_1 & noaccel::OFFSET) as u32,
                c.exit_info_1 & noaccel::WRITE != 0,
            ),
            C(0x18) => Exit::Cr8Write,
            C(0x00..=0x1f) | C::CR0_SEL_WRITE => Exit::CrAccess,
            C(0x20..=0x3f) => Exit::DrAccess,
            C(v @ 0x40..=0x5f) => Exit::Exception(self.exception((v & 31) as u8)),
            C::VMMCALL => Exit::Hypercall,
            C::INVD => Exit::Invd,
            C::WBINVD => Exit::Wbinvd,
            C::MONITOR => Exit::Monitor,
            C::MWAIT | C::MWAIT_ARMED => Exit::Mwait,
            C::PAUSE => Exit::Pause,
            C::XSETBV => Exit::Xsetbv,
            C::RDPMC => Exit::Rdpmc,
            C::RDPRU => Exit::Rdpru,
            C::TASK_SWITCH => Exit::TaskSwitch(self.task_switch()),
            C::SHUTDOWN => Exit::Shutdown,
            C::VMRUN | C::VMLOAD | C::VMSAVE | C::STGI | C::CLGI | C::SKINIT | C::INVLPGA => {
                Exit::VirtInstruction
            }
            C::RDTSCP | C::INVPCID => Exit::VirtInstruction,
            code if code.is_invalid() => Exit::FailEntry(u64::MAX),
            C(v) => Exit::Unknown(v),
        }
    }

    fn exception(&self, vector: u8) -> Exception {
        let (c, vector) = (self.control(), Vector(vector));
        Exception {
            vector,
            error_code: vector.has_error_code().then_some(c.exit_info_1 as u32),
            payload: match vector {
                Vector::PF => c.exit_info_2,
                // Hardware sets DR6 before the intercept (APM vol. 2, 15.12.2).
                Vector::DB => self.save().dr6 & dr6::CONDITIONS,
                _ => 0,
            },
        }
    }

    fn task_switch(&self) -> TaskSwitch {
        let c = self.control();
        let info = c.exit_info_2;
        let event = inject::vectoring(c.exit_int_info, c.exit_int_info_err, self.save().cr2);
        let source = match event {
            _ if info & ts::IRET != 0 => TaskSource::Iret,
            _ if info & ts::JUMP != 0 => TaskSource::Jump,
            Some(event) => TaskSource::Gate(event),
            None => TaskSource::Call,
        };
        TaskSwitch {
            selector: c.exit_info_1 as u16,
            source,
            error_code: (info & ts::ERROR_CODE != 0).then_some(info as u32),
            resume: info & ts::RF != 0,
        }
    }
}

fn io(info: u64) -> IoAccess {
    IoAccess {
        port: (info >> ioio::PORT_SHIFT) as u16,
        size: (info >> ioio::SIZE_SHIFT & 7) as u8,
        input: info & ioio::TYPE_IN != 0,
        string: info & ioio::STR != 0,
        rep: info & ioio::REP != 0,
    }
}

fn slat(info: u64, gpa: u64) -> SlatFault {
    SlatFault {
        gpa,
        write: info & npf::WRITE != 0,
        fetch: info & npf::FETCH != 0,
        present: info & npf::PRESENT != 0,
        table_walk: info & npf::WALK != 0,
        // Nothing else in the tables has a reserved bit.
        marked: info & npf::RSVD != 0,
    }
}
