//! Disks that lose or damage what was written: a node notices, never votes with it, and heals from its peers.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;

use crate::support::SetAtEnd;
use crate::support::client::Client;
use crate::support::client::bulk;
use crate::support::client::ok;
use crate::support::cluster::Cluster;
use crate::support::cluster::Member;
use crate::support::cluster::PATIENCE;
use crate::support::damage::harm_tables;
use crate::support::node::Directory;
use crate::support::wait_for;

fn write(cluster: &Cluster, id: u64, name: &str, count: usize) {
    let mut client = cluster.client(id);
    for at in 0..count {
        assert_eq!(client.cmd(&["SET", &format!("{name}:{at}"), "value"]), ok());
    }
}

/// The log's files of this kind.
fn log_files(data: &Path, extension: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(data.join("log")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
}

fn replica_of(members: &[Member], node: u64) -> Vec<u64> {
    members.iter().filter(|member| member.node == node).map(|member| member.replica).collect()
}

/// Waits until a node is a voter again, alone under its node's id and not under `old`.
fn wait_until_replaced(cluster: &mut Cluster, node: u64, old: u64) {
    wait_for("the node to be a voter under a new replica id", PATIENCE, || {
        let members = cluster.members();
        let voters = members.iter().filter(|member| member.is_voter).count();
        let own = replica_of(&members, node);
        (voters == 3 && own.len() == 1 && own[0] != old).then_some(())
    });
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_node_whose_log_is_gone_damaged_or_short_rejoins_by_itself_under_a_new_replica_id() {
    let mut cluster = Cluster::start(&[]);
    write(&cluster, 1, "key", 300);
    let harms: [fn(&Path); 3] = [
        |data| fs::remove_dir_all(data.join("log")).unwrap(),
        |data| log_files(data, "log").into_iter().for_each(|file| fs::remove_file(file).unwrap()),
        |data| {
            for file in log_files(data, "log") {
                let mut bytes = fs::read(&file).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x10;
                fs::write(file, bytes).unwrap();
            }
        },
    ];
    for (round, harm) in (1..).zip(harms) {
        let harmed = cluster.follower();
        let old = replica_of(&cluster.members(), harmed)[0];
        assert_eq!(cluster.node_mut(harmed).stop().code(), Some(0));
        harm(&cluster.node(harmed).data_dir());
        write(&cluster, cluster.others(harmed)[0], &format!("round{round}"), 100);
        cluster.start_node(harmed);
        wait_until_replaced(&mut cluster, harmed, old);
        cluster.wait_until_caught_up(harmed);
        let log = cluster.node(harmed).log();
        assert!(log.contains("THE DATA OF THIS NODE CANNOT BE TRUSTED"), "{log}");
        let data = cluster.node(harmed).data_dir();
        let aside = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(aside.filter(|name| name.to_str().unwrap().starts_with("damaged-")).count() > 0);
        assert!(!data.join("REJOIN").exists());
        assert_eq!(cluster.client(harmed).cmd(&["GET", &format!("round{round}:99")]), bulk("value"));
        cluster.check_digests();
    }
    cluster.check_alive();
}

#[test]
fn a_node_that_lost_what_it_acknowledged_is_told_so_by_the_others_and_starts_over_in_the_same_process() {
    let mut cluster = Cluster::start(&[]);
    let lost = cluster.follower();
    write(&cluster, lost, "before", 100);
    cluster.wait_until_caught_up(lost);
    let data = cluster.node(lost).data_dir();
    let kept = Directory::new();
    let old = replica_of(&cluster.members(), lost)[0];
    assert_eq!(cluster.node_mut(lost).stop().code(), Some(0));
    copy(&data, &kept.path().join("old"));
    cluster.start_node(lost);
    write(&cluster, lost, "after", 500);
    cluster.wait_until_caught_up(lost);
    let leader = cluster.leader();
    assert_ne!(leader, lost);
    // A disk that forgets the last minutes, all of it alike: nothing on it shows that.
    cluster.kill(lost);
    fs::remove_dir_all(&data).unwrap();
    copy(&kept.path().join("old"), &data);
    cluster.spawn(lost);
    let process = cluster.node(lost).process_id();
    wait_until_replaced(&mut cluster, lost, old);
    cluster.wait_until_serving(lost);
    cluster.wait_until_caught_up(lost);
    assert_eq!(cluster.node(lost).process_id(), process);
    assert_eq!(cluster.leader(), leader);
    let log = cluster.node(lost).log();
    assert!(log.contains("the data directory is an older copy") && log.contains("starts over"), "{log}");
    assert_eq!(cluster.client(lost).cmd(&["GET", "after:499"]), bulk("value"));
    assert!(data.join("damaged-1/log").exists() && !data.join("REJOIN").exists());
    cluster.check_digests();
    cluster.check_alive();
}

/// Puts a node back to a copy of its directory from before it acknowledged the writes named `after`.
fn put_back(cluster: &mut Cluster, id: u64) {
    write(cluster, id, "before", 100);
    cluster.wait_until_caught_up(id);
    let data = cluster.node(id).data_dir();
    let kept = Directory::new();
    assert_eq!(cluster.node_mut(id).stop().code(), Some(0));
    copy(&data, &kept.path().join("old"));
    cluster.start_node(id);
    write(cluster, id, "after", 100);
    cluster.wait_until_caught_up(id);
    cluster.kill(id);
    fs::remove_dir_all(&data).unwrap();
    copy(&kept.path().join("old"), &data);
}

/// The node has noticed, whoever told it, and has everything again under another replica id.
fn check_replaced(cluster: &mut Cluster, id: u64, old: u64) {
    wait_until_replaced(cluster, id, old);
    cluster.wait_until_serving(id);
    cluster.wait_until_caught_up(id);
    assert_eq!(cluster.client(id).cmd(&["GET", "after:99"]), bulk("value"));
    assert!(cluster.node(id).data_dir().join("damaged-1/log").exists());
    cluster.check_digests();
    cluster.check_alive();
}

#[test]
fn an_old_copy_of_a_directory_is_noticed_while_entries_go_on_coming() {
    let mut cluster = Cluster::start(&[]);
    let lost = cluster.follower();
    let old = replica_of(&cluster.members(), lost)[0];
    put_back(&mut cluster, lost);
    let leader = cluster.leader();
    let address = cluster.address(leader);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = SetAtEnd(&is_over);
        // What is written meanwhile must not bring it up to date as if nothing had happened.
        scope.spawn(|| {
            let mut client = Client::connect(address);
            while !is_over.load(Ordering::Relaxed) {
                assert_eq!(client.cmd(&["SET", "load", "value"]), ok());
            }
        });
        cluster.spawn(lost);
        wait_until_replaced(&mut cluster, lost, old);
    });
    check_replaced(&mut cluster, lost, old);
}

#[test]
fn an_old_copy_of_a_directory_is_noticed_when_all_others_have_started_again() {
    let mut cluster = Cluster::start(&[]);
    let lost = cluster.follower();
    let old = replica_of(&cluster.members(), lost)[0];
    put_back(&mut cluster, lost);
    // Nobody remembers what it said; only the log does.
    cluster.kill_all();
    for other in cluster.others(lost) {
        cluster.spawn(other);
    }
    cluster.leader();
    cluster.spawn(lost);
    check_replaced(&mut cluster, lost, old);
    assert!(cluster.node(lost).log().contains("the data directory is an older copy"));
}

#[test]
fn kills_and_restarts_are_never_taken_for_damage() {
    // Without rows on disk, then with some; before the first second of the watermark, and after.
    for flush in ["60000", "20"] {
        let mut cluster = Cluster::start(&["--flush-interval", flush]);
        let replicas = |cluster: &mut Cluster| {
            let mut known: Vec<(u64, u64)> =
                cluster.members().iter().map(|member| (member.node, member.replica)).collect();
            known.sort_unstable();
            known
        };
        let before = replicas(&mut cluster);
        for round in 0..4 {
            write(&cluster, 1, &format!("round{round}"), 100 * round);
            if round % 2 == 0 {
                cluster.kill_all();
            } else {
                for id in cluster.ids() {
                    assert_eq!(cluster.node_mut(id).stop().code(), Some(0));
                }
            }
            cluster.start_all();
            assert_eq!(replicas(&mut cluster), before);
        }
        for id in cluster.ids() {
            assert!(!cluster.node(id).log().contains("CANNOT BE TRUSTED"), "{}", cluster.node(id).log());
        }
        cluster.check_digests();
        cluster.check_alive();
    }
}

#[test]
fn nodes_that_all_gave_up_their_data_form_no_new_cluster() {
    let mut cluster = Cluster::start(&[]);
    write(&cluster, 1, "key", 100);
    for id in cluster.ids() {
        assert_eq!(cluster.node_mut(id).stop().code(), Some(0));
        for file in log_files(&cluster.node(id).data_dir(), "log") {
            fs::remove_file(file).unwrap();
        }
    }
    // Together: one that met another with its data would ask that to be taken in.
    cluster.ids().into_iter().for_each(|id| cluster.spawn(id));
    for id in cluster.ids() {
        wait_for("the node to say what it waits for", PATIENCE, || {
            let log = cluster.node(id).log();
            log.contains("waiting for a node that still belongs to the cluster").then_some(())
        });
    }
    assert_eq!(cluster.leader_now(), None);
    // What one of them put aside is still all there is.
    for id in cluster.ids() {
        let data = cluster.node(id).data_dir();
        assert!(data.join("damaged-1/data/0/CURRENT").exists() && data.join("REJOIN").exists());
    }
    cluster.check_alive();
}

/// Pushes payloads that are on disk and in no node's memory.
fn push_cold(cluster: &mut Cluster) {
    let mut client = cluster.client(1);
    let payload = "p".repeat(2_000);
    for _ in 0..40 {
        let pushes: Vec<Vec<&str>> = (0..100).map(|_| vec!["QPUSH", "queue", &payload]).collect();
        client.pipeline(&pushes);
    }
    // A stop brings all to disk, and a start reads no payloads.
    for id in cluster.ids() {
        cluster.wait_until_caught_up(id);
        assert_eq!(cluster.node_mut(id).stop().code(), Some(0));
        cluster.start_node(id);
    }
}

#[test]
fn a_payload_that_is_damaged_while_a_node_runs_makes_it_rejoin_in_the_same_process() {
    let mut cluster = Cluster::start(&["--queue-memory", "1mb", "--flush-interval", "20"]);
    push_cold(&mut cluster);
    // Read by an entry of the log, and by a command that is not in the log.
    let reads: [&[&str]; 2] =
        [&["QPOP", "COUNT", "300", "FROM", "queue"], &["QPEEK", "queue", "COUNT", "1000"]];
    for (round, read) in reads.into_iter().enumerate() {
        let harmed = if round == 0 { cluster.follower() } else { cluster.leader() };
        let old = replica_of(&cluster.members(), harmed)[0];
        let process = cluster.node(harmed).process_id();
        assert!(harm_tables(&cluster.node(harmed).data_dir()) > 0);
        // The answer is lost with the node if it is the one that is asked.
        let asked = if round == 0 { cluster.leader() } else { harmed };
        for _ in 0..3 {
            let _ = cluster.client(asked).try_cmd(read);
        }
        wait_until_replaced(&mut cluster, harmed, old);
        cluster.wait_until_serving(harmed);
        cluster.wait_until_caught_up(harmed);
        assert_eq!(cluster.node(harmed).process_id(), process, "it started over in place");
        let log = cluster.node(harmed).log();
        assert!(log.contains("THE DATA OF THIS NODE CANNOT BE TRUSTED") && log.contains(".sst"), "{log}");
        cluster.check_digests();
    }
    cluster.check_alive();
}

#[test]
fn a_leader_with_damaged_rows_sends_nobody_a_snapshot_of_them() {
    let mut cluster =
        Cluster::start(&["--queue-memory", "1mb", "--flush-interval", "20", "--log-max-bytes", "1mb"]);
    let behind = cluster.follower();
    cluster.kill(behind);
    let harmed = cluster.leader();
    let old = replica_of(&cluster.members(), harmed)[0];
    let mut client = cluster.client(harmed);
    let payload = "p".repeat(2_000);
    for _ in 0..40 {
        let pushes: Vec<Vec<&str>> = (0..100).map(|_| vec!["QPUSH", "queue", &payload]).collect();
        client.pipeline(&pushes);
    }
    let data = cluster.node(harmed).data_dir();
    wait_for("rows on disk", PATIENCE, || (harm_tables(&data) > 0).then_some(()));
    // The log does not go back to where it stopped: it is to be sent a snapshot.
    cluster.spawn(behind);
    wait_until_replaced(&mut cluster, harmed, old);
    for id in cluster.ids() {
        cluster.wait_until_serving(id);
        cluster.wait_until_caught_up(id);
    }
    assert_eq!(cluster.client(behind).cmd(&["QLEN", "queue"]).number(), 4_000);
    cluster.check_digests();
    cluster.check_alive();
}
