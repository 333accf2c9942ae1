//! Times, as records of [`crate::Counter`]: keys, and the buckets of durations.
//!
//! A duration is counted in one of [`BUCKETS`] buckets, four to each power of two: what is said of it by its bucket's middle is
//! wrong by less than an eighth of it ([`middle`]). Longer than [`floor`] of the last bucket (a minute at 2.2 GHz): the last.

/// Buckets of a histogram.
pub const BUCKETS: usize = 148;

/// Fields of a key of [`crate::kind::TIME`] and [`crate::kind::LATE`].
pub mod field {
    /// How many.
    pub const COUNT: u32 = 0;
    /// Their sum, ticks.
    pub const TICKS: u32 = 1;
    /// The shortest.
    pub const MIN: u32 = 2;
    /// The longest.
    pub const MAX: u32 = 3;
    /// Of exits: ticks in user space on top of that, until the vCPU came back.
    pub const USER: u32 = 4;
    /// Of exits: ticks halted or polling on top of that.
    pub const IDLE: u32 = 5;
    /// And above: how many in the bucket of that number.
    pub const BUCKET: u32 = 16;
}

/// Of a vCPU (its id), and what its time was spent on (a number with words).
pub const fn spent_key(vcpu: u32, spent: u32) -> u64 {
    (vcpu as u64) << 8 | (spent & 0xff) as u64
}

/// Its parts.
pub const fn spent_parts(key: u64) -> (u32, u32) {
    ((key >> 8) as u32, key as u32 & 0xff)
}

/// Of a row (an exit's number, `u32::MAX`: all that have none of their own; or what was late), and a field of it.
pub const fn key(row: u32, field: u32) -> u64 {
    (field as u64) << 32 | row as u64
}

/// Its parts.
pub const fn parts(key: u64) -> (u32, u32) {
    (key as u32, (key >> 32) as u32)
}

/// The bucket of a duration.
pub const fn bucket(ticks: u64) -> usize {
    if ticks < 4 {
        return ticks as usize;
    }
    let top = ticks.ilog2();
    let b = ((top - 1) * 4) as usize + (ticks >> (top - 2)) as usize % 4;
    if b < BUCKETS { b } else { BUCKETS - 1 }
}

/// The shortest duration of a bucket.
pub const fn floor(bucket: usize) -> u64 {
    match bucket / 4 {
        0 => bucket as u64,
        octave => (4 + bucket as u64 % 4) << (octave - 1),
    }
}

/// What stands for those in a bucket.
pub const fn middle(bucket: usize) -> u64 {
    let (low, high) = (floor(bucket), floor(bucket + 1));
    low + (high - low) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each duration is in the bucket whose floor is below it, and the middle is at most an eighth away.
    #[test]
    fn buckets_and_their_error() {
        let mut all: std::vec::Vec<u64> = (0..5000).collect();
        all.extend((0..37).flat_map(|n| [(1u64 << n) - 1, 1 << n, (1 << n) + (1 << n) / 3]));
        for t in all {
            let b = bucket(t);
            assert!(floor(b) <= t && t < floor(b + 1), "{t} in {b}");
            assert!(middle(b).abs_diff(t) * 8 <= t, "{t} said to be {}", middle(b));
        }
        assert_eq!((bucket(u64::MAX), bucket(1 << 60)), (BUCKETS - 1, BUCKETS - 1));
    }

    #[test]
    fn keys_and_their_parts() {
        assert_eq!(parts(key(u32::MAX, field::BUCKET + 147)), (u32::MAX, 163));
        assert_eq!(spent_parts(spent_key(4095, 5)), (4095, 5));
    }
}
