//! Values of many megabytes: the leader stays, other clients go on, and what is too large is refused as a whole.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crate::support::SetAtEnd;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::cluster::Cluster;

const VALUE_BYTES: usize = 60 << 20;
const WRITERS: u64 = 3;
/// Three nodes on two processors move more than a gigabyte each way.
const REPLY_WAIT: Duration = Duration::from_secs(120);

fn terms(cluster: &mut Cluster) -> Vec<u64> {
    let ids = cluster.ids();
    ids.into_iter().map(|id| cluster.raft_info(id).expect("it answers").term).collect()
}

#[test]
fn large_values_depose_nobody_and_what_is_larger_than_an_entry_is_refused() {
    // A busy machine takes its time for a value.
    let mut cluster = Cluster::start(&["--indoubt-timeout", "60000"]);
    let before = terms(&mut cluster);
    let value = vec![b'v'; VALUE_BYTES];
    let is_over = AtomicBool::new(false);
    let others = thread::scope(|scope| {
        let end = SetAtEnd(&is_over);
        let other = scope.spawn(|| {
            let mut client = cluster.client(1);
            client.set_timeout(REPLY_WAIT);
            let mut answered = 0;
            while !is_over.load(Ordering::Relaxed) {
                assert_eq!(client.cmd(&["SET", "small", "value"]), ok());
                answered += 1;
            }
            answered
        });
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (value, cluster) = (&value, &cluster);
                scope.spawn(move || {
                    let mut client = cluster.client(writer % 3 + 1);
                    client.set_timeout(REPLY_WAIT);
                    let key = format!("large:{writer}");
                    assert_eq!(client.cmd_bytes(&[b"SET", key.as_bytes(), value]), ok());
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        drop(end);
        other.join().unwrap()
    });
    assert!(others > 0);
    assert_eq!(terms(&mut cluster), before, "nobody had to stand for election");

    // Two values that each fit, and together do not.
    for id in cluster.ids() {
        let mut client = cluster.client(id);
        client.set_timeout(REPLY_WAIT);
        let refused = client.cmd_bytes(&[b"MSET", b"a", &value, b"b", &value]);
        let text = refused.text();
        assert!(
            text.contains("may change at once") && text.ends_with("The command was not executed."),
            "{text}"
        );
        assert_eq!(client.cmd(&["EXISTS", "a", "b"]), int(0));
    }
    assert_eq!(terms(&mut cluster), before);
    for writer in 0..WRITERS {
        let length = cluster.client(1).cmd(&["STRLEN", &format!("large:{writer}")]);
        assert_eq!(length, int(VALUE_BYTES as i64));
    }
    cluster.check_digests();
    cluster.check_alive();
}
