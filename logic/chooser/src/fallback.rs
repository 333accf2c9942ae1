//! Why an active mechanism left one case to the way there always is. The values are user space's: none is ever reused.

macro_rules! fallbacks {
    ($($name:ident, $text:literal, $words:literal;)*) => {
        /// See the file's head.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Fallback {
            $(#[doc = $words] $name,)*
        }

        impl Fallback {
            /// All of them; a value is a place here.
            pub const ALL: [Fallback; Fallback::COUNT] = [$(Fallback::$name,)*];
            /// How many there are.
            pub const COUNT: usize = [$($text,)*].len();

            /// As tables name it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Fallback::$name => $text,)*
                }
            }

            /// What it means.
            pub const fn words(self) -> &'static str {
                match self {
                    $(Fallback::$name => $words,)*
                }
            }
        }
    };
}

fallbacks! {
    Form, "form", "a form, value or mode that it does not cover";
    Length, "length", "the CPU does not tell the instruction's length, and its bytes were out of reach";
    Watched, "watched", "a debugger, single step or filter of user space looks";
    Targets, "targets", "too many targets, or not found by lookup";
    Busy, "busy", "a lock or another vCPU was in the way";
    Waits, "waits", "an event, a request or the scheduler waits";
    Elsewhere, "elsewhere", "what it needs is not in this CPU now: the timer at the host, the target out of the guest";
    Nobody, "nobody", "nobody in the kernel answers there";
}
