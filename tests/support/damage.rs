//! What a bad disk does to tables while nobody looks.

use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Flips a bit in every 4 KiB of a part of each table of the rows: where payloads are, if there are many, and neither what
/// a start reads nor an index. Gives the number of tables.
pub fn harm_tables(data: &Path) -> usize {
    let mut tables = 0;
    for entry in fs::read_dir(data.join("data/0")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "sst") {
            continue;
        }
        // In place, as it is open.
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let length = file.metadata().unwrap().len();
        for at in (length / 8..length / 2).step_by(4096) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 0x04], at).unwrap();
        }
        tables += 1;
    }
    tables
}
