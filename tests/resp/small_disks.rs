//! A disk that is filled to the last byte that the limits allow: nothing ends, and room that is made is used.
//!
//! `SMALL_DISK_MB=500` for disks of other sizes.

use std::fs;
use std::net::SocketAddr;

use holdfast::types::Millis;

use crate::support::client::Client;
use crate::support::client::bulk;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::filling::Reader;
use crate::support::filling::empty;
use crate::support::filling::fill;
use crate::support::filling::wait_until_taken;
use crate::support::node::Node;
use crate::support::node::free_port;
use crate::support::node::run_to_end;
use crate::support::number_from_env;
use crate::support::small_disk::SmallDisk;
use crate::support::small_disk::with_mounts;
use crate::support::wait_for;

const MIB: u64 = 1 << 20;

fn disk_state(client: &mut Client) -> String {
    let info = client.cmd(&["INFO", "persistence"]).text();
    let state = info.lines().find_map(|line| line.strip_prefix("disk_state:"));
    state.unwrap().to_owned()
}

fn length(client: &mut Client, queue: &str) -> u64 {
    client.cmd(&["QLEN", queue]).number()
}

#[test]
fn a_small_disk_is_filled_and_emptied_and_the_node_outlives_it() {
    with_mounts(
        "resp::small_disks::a_small_disk_is_filled_and_emptied_and_the_node_outlives_it",
        fill_and_empty,
    );
}

fn fill_and_empty() {
    let megabytes = number_from_env("SMALL_DISK_MB", 100);
    let mut node = Node::prepare(&[]);
    let disk = SmallDisk::give(&node, megabytes * MIB);
    node.restart();
    let to: Vec<SocketAddr> = vec![node.address()];
    for round in 0..2 {
        assert_eq!(node.client().cmd(&["SET", "kept", "value"]), ok());
        let reader = Reader::start(to[0], "kept", "value");
        let filled = fill(&to, round);
        assert!(reader.stop() > 0);
        println!("round {round}: {filled:?} on {megabytes} MB");
        // Half of a disk, at the least, is for data; room for more comes back as compaction goes.
        let least = if round == 0 { megabytes * MIB / 2 } else { 0 };
        assert!(filled.refused > 0 && filled.bytes > least, "{filled:?}");
        let mut client = node.client();
        // Refused before: nothing that the node wrote itself found no room.
        let state = disk_state(&mut client);
        assert!(!node.log().contains("nothing is written until there is room"), "the disk is {state}");
        // What was acknowledged is there, and so is the node, after a kill and after a stop.
        if round == 0 {
            node.kill();
        } else {
            assert_eq!(node.stop().code(), Some(0));
        }
        node.restart();
        let mut client = node.client();
        assert_eq!(client.cmd(&["GET", "kept"]), bulk("value"));
        let keys = client.cmd(&["DBSIZE"]).number() - u64::from(round > 0);
        // The key that is kept, and the queue.
        assert_eq!(keys, filled.keys + 2);
        assert_eq!(length(&mut client, "queue"), filled.messages);
        empty(to[0]);
        wait_until_taken(to[0]);
    }
    drop(node);
    drop(disk);
}

#[test]
fn a_disk_that_others_filled_to_the_last_byte_is_read_and_used_again_when_there_is_room() {
    with_mounts(
        "resp::small_disks::a_disk_that_others_filled_to_the_last_byte_is_read_and_used_again_when_there_is_room",
        fill_by_others,
    );
}

fn fill_by_others() {
    let mut node = Node::prepare(&[]);
    let disk = SmallDisk::give(&node, 100 * MIB);
    node.restart();
    let mut client = node.client();
    assert_eq!(client.cmd(&["SET", "kept", "value"]), ok());
    for at in 0..20 {
        assert_eq!(client.cmd(&["SET", &format!("large:{at}"), &"x".repeat(100_000)]), ok());
    }
    let other = node.data_dir().join("lost+found");
    let take_everything = || {
        let mut length = 200 * MIB;
        while length > 0 {
            let file = fs::File::options().create(true).append(true).open(&other).unwrap();
            let bytes = vec![7; usize::try_from(length).unwrap().min(1 << 20)];
            if std::io::Write::write(&mut &file, &bytes).is_err() {
                length = length.min(1 << 20) / 2;
            }
        }
    };
    take_everything();
    // A node that was about to write has to start over, which ends connections.
    wait_for("the disk to be full, and reads to be served", Millis(30_000), || {
        let mut client = Client::try_connect(node.address()).ok()?;
        let refused = client.try_cmd(&["SET", "more", "value"]).ok()?;
        let read = client.try_cmd(&["GET", "kept"]).ok()?;
        (refused.error_code() == Some("MISCONF") && read == bulk("value")).then_some(())
    });
    node.kill();
    take_everything();
    // There is no room to open anything.
    node.restart();
    let mut client = node.client();
    assert!(node.log().contains("too full to start on"), "{}", node.log());
    assert_eq!(client.cmd(&["GET", "kept"]), bulk("value"));
    assert_eq!(client.cmd(&["DBSIZE"]), int(21));
    let refused = client.cmd(&["DEL", "kept"]).text();
    assert!(refused.starts_with("MISCONF disk full"), "{refused}");
    fs::remove_file(&other).unwrap();
    wait_for("the node to take data again", Millis(30_000), || {
        let mut client = Client::try_connect(node.address()).ok()?;
        (client.try_cmd(&["SET", "more", "value"]).ok()? == ok()).then_some(())
    });
    let mut client = node.client();
    assert_eq!(client.cmd(&["DBSIZE"]), int(22));
    assert_eq!(client.cmd(&["DEL", "kept"]), int(1));
    assert_eq!(node.stop().code(), Some(0));
    drop(node);
    drop(disk);
}

#[test]
fn a_disk_too_small_to_run_on_is_refused_in_one_line_that_says_how_large_it_must_be() {
    with_mounts(
        "resp::small_disks::a_disk_too_small_to_run_on_is_refused_in_one_line_that_says_how_large_it_must_be",
        refuse_the_smallest,
    );
}

fn refuse_the_smallest() {
    let node = Node::prepare(&[]);
    let disk = SmallDisk::give(&node, 32 * MIB);
    let data = node.data_dir();
    let ports: Vec<String> = (0..2).map(|_| free_port().to_string()).collect();
    let output = run_to_end(&[
        "--dir",
        data.to_str().unwrap(),
        "--port",
        &ports[0],
        "--http-port",
        &ports[1],
        "--logfile",
        data.with_extension("log").to_str().unwrap(),
    ]);
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    let least = 64 * MIB;
    assert!(
        line.contains(&format!("{} bytes in all", 32 * MIB)) && line.contains(&least.to_string()),
        "{line}"
    );
    drop(node);
    drop(disk);
}
