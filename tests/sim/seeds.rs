//! Seeds that once failed, with their story. They run with every run, for ever. (What a seed draws changes with the
//! simulator; the bug of the first two stays planted as `Bug::ExpireFlood`, which seed 43 finds.)

/// (seed, what it found).
pub const REGRESSIONS: [(u64, &str); 9] = [
    (22, "a leader proposed EXPIRE again and again until a slow apply thread had applied the first"),
    (105, "the same with five nodes: 480,000 entries in ten minutes, and apply never caught up"),
    (95, "two disks were lost before all had heard that the first was replaced: one more than there may be"),
    (727, "a log lost an end that its watermark could not miss, and the leader noticed it"),
    (900, "a snapshot whose receiver crashed was never reported as not sent, and never sent again"),
    (2087, "a leader of an old term woke up after the next one had committed its entries: no violation"),
    (
        3200,
        "a node that lost its disk twice in a row was given the replica id of its life before: the answer came late",
    ),
    (
        4317,
        "a disk was lost when nobody's disk knew yet that the one lost before was replaced, and the others crashed",
    ),
    (
        4502,
        "the same: two disks of one configuration were lost, as far as the rest could know after the crash",
    ),
];
