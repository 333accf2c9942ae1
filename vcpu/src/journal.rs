//! The journal: what one emulated instruction has already done outside the registers.
//!
//! An instruction that needs user space (MMIO, a port) stops in the middle. User space answers, and the instruction
//! is emulated *again from its start*: reads that were answered come from the journal, writes that were done are
//! swallowed. Registers change only when the instruction completes, so the replay sees what the first pass saw.
//!
//! A memory write to user space needs no answer: it is *posted*, the instruction goes on and completes, and user space is told
//! afterwards, one KVM_RUN for each posted write.
//!
//! ```text
//!   empty --- access needs user space ---> awaiting --- answer ---> replaying --- commit ---> empty
//!                                             ^                         |
//!                                             +--- next access ---------+
//! ```

use exitless_insn::walk::Operation;

/// Hardware walked the guest's tables to here a moment ago, for the system's privilege levels, and checked every right for this
/// kind of access. Code may have changed since: another place or kind is walked for again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked {
    /// Guest-physical address.
    pub gpa: u64,
    /// Linear address; `None`: the instruction's bytes are those that hardware executed, so it is its operand's.
    pub linear: Option<u64>,
    /// For a write, which may be read as well; otherwise for a read.
    pub write: bool,
}

impl Walked {
    /// Answers an access at `linear`: it is the same place, and the right was asked for.
    pub(crate) fn allows(self, linear: u64, operation: Operation) -> bool {
        let right = match operation {
            Operation::Read => true,
            Operation::Write => self.write,
            Operation::Fetch => false,
        };
        let same = self.linear.is_none_or(|walked| walked == linear);
        right && same && (self.gpa ^ linear) & 4095 == 0
    }
}

/// What user space is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// An MMIO access at a guest-physical address.
    Mmio {
        /// Guest-physical address.
        gpa: u64,
    },
    /// A port access.
    Port {
        /// Port number.
        port: u16,
    },
}

/// One access of at most 8 bytes, or a block of string I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub access: Access,
    /// A write; otherwise a read.
    pub write: bool,
    /// Bytes of one element, 1 to 8.
    pub len: u8,
    /// Elements: 1, or those of a block of string I/O, whose data stays in the I/O page instead of `data`. It is still there in
    /// the replay, which comes first of all when user space has answered.
    pub count: u32,
    /// Written data, or the answer.
    pub data: [u8; 8],
}

impl Entry {
    /// The same place, direction and size; the data of a replayed write may differ and does not matter.
    fn same_access(&self, other: &Self) -> bool {
        (self.access, self.write, self.len, self.count) == (other.access, other.write, other.len, other.count)
    }
}

/// PUSHA and POPA need most: 8 registers, one of them across two pages.
const CAPACITY: usize = 12;

const BLANK: Entry = Entry { access: Access::Mmio { gpa: 0 }, write: false, len: 0, count: 0, data: [0; 8] };

/// Posted writes that can wait; a string instruction stops when they do.
const POSTED: usize = 8;

/// The instruction's bytes, how many of them count, and what the exit told where that saves a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// From RIP on.
    pub bytes: [u8; 15],
    /// Fetched, at most 15.
    pub valid: usize,
    /// Iterations end one by one: each may trap.
    pub stepping: bool,
    /// Where the one memory operand lies, as the exit told.
    pub operand: Option<Walked>,
}

/// See the file's head.
#[derive(Clone, Copy, Debug)]
pub struct Journal {
    entries: [Entry; CAPACITY],
    /// Entries done.
    done: usize,
    /// Entries the replay has passed.
    cursor: usize,
    /// The access user space works on, or will when it has seen the posted writes.
    awaiting: Option<Entry>,
    /// User space was told of `awaiting`.
    told: bool,
    /// What the replay executes.
    source: Option<Source>,
    posted: [Entry; POSTED],
    /// The posted writes not yet told are those from `told_posts` to `posts`.
    posts: usize,
    told_posts: usize,
}

/// What to do with an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Done before: here is the answer (of a read).
    Done([u8; 8]),
    /// Not done yet: do it in the kernel and [`Journal::record`] it, or [`Journal::ask`].
    Fresh,
}

impl Journal {
    /// The instruction is over. Posted writes stay: they have happened.
    pub fn clear(&mut self) {
        self.done = 0;
        self.cursor = 0;
        self.awaiting = None;
        self.source = None;
    }

    /// User space replaced the registers: nothing of the old instruction counts.
    pub fn forget(&mut self) {
        self.clear();
        (self.posts, self.told_posts) = (0, 0);
    }

    /// Posts a memory write. `false`: no room, ask instead.
    pub fn post(&mut self, entry: Entry) -> bool {
        match self.posted.get_mut(self.posts) {
            Some(p) => {
                *p = entry;
                self.posts += 1;
                true
            }
            None => false,
        }
    }

    /// The next posted write for user space, oldest first.
    pub fn next_posted(&mut self) -> Option<Entry> {
        if self.told_posts == self.posts {
            (self.posts, self.told_posts) = (0, 0);
            return None;
        }
        let next = self.posted.get(self.told_posts).copied();
        self.told_posts += 1;
        next
    }

    /// Keeps the instruction for its replay.
    pub fn keep(&mut self, source: Source) {
        self.source = Some(source);
    }

    /// The instruction that is being replayed.
    pub fn source(&self) -> Option<Source> {
        self.source
    }

    /// User space is told of the access it is asked for.
    pub fn tell(&mut self) -> Option<Entry> {
        self.told = true;
        self.awaiting
    }

    /// User space knows what it is asked for.
    pub fn told(&self) -> bool {
        self.told
    }

    /// Starts a pass over the instruction.
    pub fn rewind(&mut self) {
        self.cursor = 0;
    }

    /// This access was done before and is the next in line.
    pub fn next_is(&self, wanted: &Entry) -> bool {
        let next = self.entries.get(self.cursor);
        self.cursor < self.done && next.is_some_and(|e| e.same_access(wanted))
    }

    /// The next access of this pass: was it done before? If something else was done at this place, another vCPU has changed
    /// translations or code between two passes. What was done from here on is forgotten: its answers belong to other
    /// addresses, and the guest that races with itself sees a device access more than it asked for.
    pub fn step(&mut self, wanted: &Entry) -> Step {
        match self.entries.get(self.cursor) {
            Some(e) if self.next_is(wanted) => {
                self.cursor += 1;
                Step::Done(e.data)
            }
            _ => {
                self.done = self.done.min(self.cursor);
                Step::Fresh
            }
        }
    }

    /// Notes an access done in the kernel. `false`: the journal is full.
    pub fn record(&mut self, entry: Entry) -> bool {
        match self.entries.get_mut(self.done) {
            Some(e) => {
                *e = entry;
                self.done += 1;
                self.cursor = self.done;
                true
            }
            None => false,
        }
    }

    /// Asks user space.
    pub fn ask(&mut self, entry: Entry) {
        self.told = false;
        self.awaiting = Some(entry);
    }

    /// What user space is asked, if anything.
    pub fn awaiting(&self) -> Option<Entry> {
        self.awaiting
    }

    /// User space answered: `data` for a read, ignored for a write. `false`: nothing was asked, or the journal is full.
    pub fn answer(&mut self, data: [u8; 8]) -> bool {
        match self.awaiting.take() {
            Some(e) => {
                let data = if e.write { e.data } else { data };
                let ok = self.record(Entry { data, ..e });
                self.cursor = 0;
                ok
            }
            None => false,
        }
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            entries: [BLANK; CAPACITY],
            done: 0,
            cursor: 0,
            awaiting: None,
            told: false,
            source: None,
            posted: [BLANK; POSTED],
            posts: 0,
            told_posts: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(gpa: u64) -> Entry {
        Entry { access: Access::Mmio { gpa }, write: false, len: 4, count: 1, data: [0; 8] }
    }

    /// A load that crosses two pages of a device: each half is asked once, and the last pass sees both answers.
    #[test]
    fn replays_answers_in_order() {
        let mut j = Journal::default();
        j.rewind();
        assert_eq!(j.step(&read(0x1000)), Step::Fresh);
        j.ask(read(0x1000));
        assert!(j.answer([1; 8]));
        j.rewind();
        assert_eq!(j.step(&read(0x1000)), Step::Done([1; 8]));
        assert_eq!(j.step(&read(0x2000)), Step::Fresh);
        j.ask(read(0x2000));
        assert!(j.answer([2; 8]));
        j.rewind();
        assert_eq!(j.step(&read(0x1000)), Step::Done([1; 8]));
        assert_eq!(j.step(&read(0x2000)), Step::Done([2; 8]));
        assert_eq!(j.step(&read(0x3000)), Step::Fresh);
    }

    /// Another vCPU remaps the page while user space answers: the answer of the old device must not become the new one's
    /// data. The same for another direction, size or number of elements.
    #[test]
    fn another_access_forgets_the_rest() {
        let asked = read(0x2000);
        let others = [
            read(0x5000),
            Entry { access: Access::Port { port: 0x2000 }, ..asked },
            Entry { write: true, ..asked },
            Entry { len: 8, ..asked },
            Entry { count: 2, ..asked },
        ];
        for other in others {
            let mut j = Journal::default();
            j.record(read(0x1000));
            j.ask(asked);
            assert!(j.answer([2; 8]));
            j.record(read(0x3000));
            j.rewind();
            assert!(matches!(j.step(&read(0x1000)), Step::Done(_)));
            assert_eq!(j.step(&other), Step::Fresh);
            assert!(j.record(Entry { data: [7; 8], ..other }));
            j.rewind();
            assert!(matches!(j.step(&read(0x1000)), Step::Done(_)));
            assert_eq!(j.step(&other), Step::Done([7; 8]));
            assert_eq!(j.step(&read(0x3000)), Step::Fresh, "behind the change nothing is left");
        }
    }

    /// The data of a write is computed again in the replay, from memory that may have changed: it stays done.
    #[test]
    fn a_write_is_done_whatever_its_data() {
        let mut j = Journal::default();
        let write = |byte| Entry { write: true, data: [byte; 8], ..read(0x1000) };
        j.ask(write(1));
        assert!(j.answer([0; 8]));
        j.rewind();
        assert_eq!(j.step(&write(2)), Step::Done([1; 8]));
    }

    /// An answer nobody asked for (user space runs the vCPU twice) changes nothing.
    #[test]
    fn unasked_answer_is_refused() {
        let mut j = Journal::default();
        assert!(!j.answer([1; 8]));
        j.rewind();
        assert_eq!(j.step(&read(0)), Step::Fresh);
    }

    /// Posted writes come out in order, survive the end of their instruction, and are refused when nobody takes them.
    #[test]
    fn posted_writes_queue() {
        let mut j = Journal::default();
        for i in 0..POSTED as u64 {
            assert!(j.post(Entry { write: true, ..read(i) }));
        }
        assert!(!j.post(read(99)));
        j.clear();
        for i in 0..POSTED as u64 {
            assert_eq!(j.next_posted().map(|e| e.access), Some(Access::Mmio { gpa: i }));
        }
        assert_eq!(j.next_posted(), None);
        assert!(j.post(read(7)));
        j.forget();
        assert_eq!(j.next_posted(), None);
    }

    /// The journal never grows past its array.
    #[test]
    fn full_journal_says_so() {
        let mut j = Journal::default();
        for i in 0..CAPACITY as u64 {
            assert!(j.record(read(i)));
        }
        assert!(!j.record(read(99)));
    }
}
