//! What a proposal costs from the connection's side to its reply, without fsync: one at a time, and fifty.

use std::sync::Arc;

use criterion::Criterion;
use criterion::criterion_group;
use criterion::criterion_main;
use holdfast::clock::SystemClock;
use holdfast::config::Config;
use holdfast::config::SharedConfig;
use holdfast::consensus::Group;
use holdfast::consensus::raft::replica::Replica;
use holdfast::consensus::raft::replica::ReplicaParts;
use holdfast::machine::entry::Batch;
use holdfast::storage::DataStore;
use holdfast::storage::LogStore;
use holdfast::storage::SharedCaches;
use holdfast::storage::SharedData;
use holdfast::storage::Watermark;
use holdfast::types::GroupId;

fn batch(n: u64) -> Batch {
    let mut batch = Batch::new(b"default");
    let key = format!("key:{n}");
    batch.push_command(0, [&b"SET"[..], key.as_bytes(), &[b'x'; 64]].into_iter());
    batch
}

async fn propose_many(group: &Group, count: u64) {
    let waiting: Vec<_> = (0..count).map(|n| group.propose(batch(n))).collect();
    for reply in waiting {
        reply.await.expect("a cluster of one leads itself");
    }
}

fn propose(c: &mut Criterion) {
    let dir = std::env::temp_dir().join(format!("holdfast-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("the temporary directory is writable");
    let config = Config::load(&["--appendfsync".to_owned(), "no".to_owned()]).expect("a legal configuration");
    let caches = SharedCaches::new(8 << 20, 64 << 20);
    let replica = Replica::start(ReplicaParts {
        group: GroupId(0),
        dir: dir.clone(),
        log: Arc::new(LogStore::open(&dir).expect("an empty directory")),
        data: SharedData::new(DataStore::open(&dir, GroupId(0), &caches).expect("an empty directory")),
        caches,
        peers: None,
        watermark: Watermark::open(&dir).expect("an empty directory"),
        config: SharedConfig::new(config.config, None),
        clock: Arc::new(SystemClock::start()),
    })
    .expect("an empty directory");
    let group = replica.group();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for count in [1, 50] {
        c.bench_function(&format!("propose {count} at once"), |b| {
            b.iter(|| runtime.block_on(propose_many(&group, count)));
        });
    }
    drop(group);
    replica.stop();
    std::fs::remove_dir_all(&dir).expect("it is ours");
}

criterion_group!(benches, propose);
criterion_main!(benches);
