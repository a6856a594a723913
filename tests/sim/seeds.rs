//! Seeds that once failed, with their story. They run with every run, for ever.

/// (seed, what it found).
pub const REGRESSIONS: [(u64, &str); 0] = [];
