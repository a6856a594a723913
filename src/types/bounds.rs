//! How large values and replies may become.
//!
//! The two limits are directives of a node, and what apply does must not depend on the node that applies. So they travel
//! with the commands: a batch carries those of the node that took it, and every replica decides by them.

/// The longest string that APPEND and SETRANGE ever make, whatever a node allows, in bytes.
pub const STRING_BYTES_MAX: usize = 512 << 20;

/// What a reply takes besides a value or payload that is as long as may be: names, numbers, ends of line.
pub const FRAMING_BYTES: usize = 1 << 20;

/// What a node allows its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The longest string that a command may make, in bytes (`proto-max-bulk-len`).
    pub value: usize,
    /// The bytes that one reply may take (`client-output-buffer-limit`).
    pub reply: usize,
}

impl Bounds {
    /// What the directives allow when nobody sets them; a batch says nothing of them then.
    pub const DEFAULT: Bounds = Bounds { value: 64 << 20, reply: (64 << 20) + FRAMING_BYTES };
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds::DEFAULT
    }
}
