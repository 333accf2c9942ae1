//! `exitless-suite gdb SOCKET`: what gdb asks of a VMM's stub, on a Linux guest that has not run yet.
//!
//! A breakpoint in a register stops the guest at the kernel's entry, single steps find out how it goes on from there, and then a
//! watchpoint and a breakpoint in memory stop it at places known by then. At last the guest runs free.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Where a bzImage's 32-bit code lies and begins (Documentation/x86/boot.rst).
const ENTRY: u64 = 0x10_0000;
/// Steps from there: past the call that finds out where the kernel is.
const STEPS: usize = 12;

type R<T> = Result<T, String>;

/// One connection of the remote protocol.
struct Stub(UnixStream);

/// The registers that matter, in 32-bit code.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Regs {
    sp: u64,
    pc: u64,
}

impl Stub {
    fn connect(path: &str) -> R<Stub> {
        let s = UnixStream::connect(path).map_err(|e| format!("{path}: {e}"))?;
        s.set_read_timeout(Some(Duration::from_secs(100))).map_err(|e| e.to_string())?;
        Ok(Stub(s))
    }

    fn byte(&mut self) -> R<u8> {
        let mut b = [0];
        self.0.read_exact(&mut b).map_err(|e| format!("no answer: {e}"))?;
        Ok(b[0])
    }

    /// Sends a packet and returns the answer.
    fn ask(&mut self, packet: &str) -> R<String> {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        write!(self.0, "${packet}#{sum:02x}").map_err(|e| e.to_string())?;
        while self.byte()? != b'$' {}
        let mut answer = String::new();
        loop {
            match self.byte()? {
                b'#' => break,
                b => answer.push(b.into()),
            }
        }
        self.byte()?;
        self.byte()?;
        self.0.write_all(b"+").map_err(|e| e.to_string())?;
        Ok(answer)
    }

    fn ok(&mut self, packet: &str) -> R<()> {
        match self.ask(packet)?.as_str() {
            "OK" => Ok(()),
            other => Err(format!("{packet}: `{other}`")),
        }
    }

    /// Lets the guest run, or step, until it stops by a trap.
    fn until_trap(&mut self, how: &str) -> R<String> {
        let why = self.ask(how)?;
        if why.starts_with("T05") { Ok(why) } else { Err(format!("{how}: stopped with `{why}`")) }
    }

    /// Register `n` of 8 bytes each: RSP is the eighth, RIP the seventeenth.
    fn regs(&mut self) -> R<Regs> {
        let all = self.ask("g")?;
        let word = |n: usize| {
            let hex = all.get(n * 16..n * 16 + 16)?;
            u64::from_str_radix(hex, 16).ok().map(u64::swap_bytes)
        };
        let (Some(sp), Some(pc)) = (word(7), word(16)) else { return Err(format!("registers `{all}`")) };
        Ok(Regs { sp, pc })
    }

    fn at(&mut self, pc: u64, what: &str) -> R<Regs> {
        let r = self.regs()?;
        if r.pc == pc { Ok(r) } else { Err(format!("{what}: at {:#x}, not at {pc:#x}", r.pc)) }
    }

    /// Back to a place, with the stack of then.
    fn rewind(&mut self, to: Regs) -> R<()> {
        self.ok(&format!("P7={:016x}", to.sp.swap_bytes()))?;
        self.ok(&format!("P10={:016x}", to.pc.swap_bytes()))
    }
}

/// The session; what was done, for people.
pub(crate) fn session(socket: &str) -> R<String> {
    let mut s = Stub::connect(socket)?;
    s.ask("qSupported:")?;
    s.until_trap("?")?;
    s.ok(&format!("Z1,{ENTRY:x},1"))?;
    s.until_trap("c")?;
    let entry = s.at(ENTRY, "breakpoint in a register")?;
    s.ok(&format!("z1,{ENTRY:x},1"))?;

    let mut path = vec![entry];
    for n in 0..STEPS {
        s.until_trap("s")?;
        let r = s.regs()?;
        if path.iter().any(|p| p.pc == r.pc) {
            return Err(format!("step {n} got nowhere: {:#x}", r.pc));
        }
        path.push(r);
    }
    let Some(call) = path.windows(2).position(|w| w[1].sp + 4 == w[0].sp) else {
        return Err(format!("no call among {path:x?}"));
    };
    let (pushed, behind) = (path[call + 1].sp, path[call + 1].pc);

    s.rewind(entry)?;
    s.ok(&format!("Z2,{pushed:x},4"))?;
    let why = s.until_trap("c")?;
    let told = why.split_once("watch:").and_then(|(_, at)| at.split(';').next());
    if told.and_then(|at| u64::from_str_radix(at, 16).ok()) != Some(pushed) {
        return Err(format!("watchpoint at {pushed:#x}: `{why}`"));
    }
    s.at(behind, "watchpoint")?;
    s.ok(&format!("z2,{pushed:x},4"))?;

    s.rewind(entry)?;
    let last = path[STEPS];
    s.ok(&format!("Z0,{:x},1", last.pc))?;
    s.until_trap("c")?;
    s.at(last.pc, "breakpoint in memory")?;
    s.ok(&format!("z0,{:x},1", last.pc))?;
    s.until_trap("s")?;
    s.ok("D")?;
    Ok(format!("{STEPS} steps from {ENTRY:#x} to {:#x}, a watchpoint at {pushed:#x}", last.pc))
}
