//! The rig itself: what a power cut leaves, bad disks, links that are cut, and checkers that find what is wrong.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use holdfast::types::Millis;

use crate::chaos::checks::check;
use crate::chaos::history::Action;
use crate::chaos::history::Answer;
use crate::chaos::history::Operation;
use crate::chaos::history::Outcome;
use crate::support::Random;
use crate::support::cluster::Cluster;
use crate::support::links::Links;
use crate::support::node::Directory;
use crate::support::power::Count;
use crate::support::power::Disk;
use crate::support::power::Setting;
use crate::support::power::Tail;
use crate::support::wait_for;

/// A disk, and a shell that works on it.
struct Desk {
    directory: Directory,
    disk: Disk,
}

impl Desk {
    fn new() -> Desk {
        let directory = Directory::new();
        let disk = Disk::new(&directory.path().join("data"));
        Desk { directory, disk }
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// True when the commands, with `$R` for the root, all succeeded.
    fn try_run(&self, commands: &str) -> bool {
        let mut shell = Command::new("sh");
        shell.args(["-ec", commands]).env("LD_PRELOAD", Disk::library()).env("R", self.root());
        shell.stderr(std::process::Stdio::null());
        shell.envs(self.disk.environment()).status().unwrap().success()
    }

    fn run(&self, commands: &str) {
        assert!(self.try_run(commands), "{commands}");
    }

    fn text(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.root().join(name)).ok()
    }

    /// Whether what `there` looks for is there after some power cut and gone after another; the same commands run
    /// before each.
    fn outcomes(commands: &str, there: fn(&Path) -> bool) -> (bool, bool) {
        let (mut kept, mut gone) = (false, false);
        for seed in 0..40 {
            let desk = Desk::new();
            desk.run(commands);
            desk.disk.cut_power(&mut Random::new(seed), Tail::AtRandom);
            match there(&desk.root()) {
                true => kept = true,
                false => gone = true,
            }
            if kept && gone {
                break;
            }
        }
        (kept, gone)
    }
}

#[test]
fn a_power_cut_keeps_what_was_synced_and_takes_some_of_the_rest() {
    let (mut kept, mut torn, mut gone) = (false, false, false);
    for seed in 0..60 {
        let desk = Desk::new();
        desk.run("printf 0123456789 >$R/f; sync $R/f; sync $R; printf abcdefghij >>$R/f");
        let loss = desk.disk.cut_power(&mut Random::new(seed), Tail::AtRandom);
        let text = desk.text("f").expect("its name was synced");
        assert!("0123456789abcdefghij".starts_with(&text) && text.len() >= 10, "{text}");
        assert_eq!(loss.bytes, 20 - text.len() as u64);
        match text.len() {
            10 => gone = true,
            20 => kept = true,
            _ => torn = true,
        }
        // What is there now is durable.
        assert_eq!(desk.disk.cut_power(&mut Random::new(seed + 1), Tail::AtRandom).bytes, 0);
        assert_eq!(desk.text("f"), Some(text));
    }
    assert!(kept && torn && gone);
}

#[test]
fn garbage_is_never_in_what_was_synced() {
    let mut garbled = 0;
    for seed in 0..30 {
        let desk = Desk::new();
        desk.run("printf 0123456789 >$R/f; sync -d $R/f; sync $R; printf abcdefghij >>$R/f");
        garbled += desk.disk.cut_power(&mut Random::new(seed), Tail::Garbage).garbled;
        let bytes = fs::read(desk.root().join("f")).unwrap();
        assert_eq!(&bytes[..10], b"0123456789");
    }
    assert!(garbled > 0);
}

#[test]
fn names_that_were_not_synced_come_and_go() {
    assert_eq!(Desk::outcomes("printf x >$R/f; sync $R/f", |root| root.join("f").exists()), (true, true));
    assert_eq!(
        Desk::outcomes("printf x >$R/f; sync $R/f; sync $R", |root| root.join("f").exists()),
        (true, false)
    );
    assert_eq!(Desk::outcomes("mkdir $R/d", |root| root.join("d").exists()), (true, true));
    assert_eq!(Desk::outcomes("mkdir $R/d; sync $R", |root| root.join("d").exists()), (true, false));
    // A file that was removed comes back with what was durable.
    let removed = "printf x >$R/f; sync $R/f; sync $R; rm $R/f";
    assert_eq!(
        Desk::outcomes(removed, |root| fs::read(root.join("f")).is_ok_and(|text| text == b"x")),
        (true, true)
    );
    assert_eq!(Desk::outcomes(&format!("{removed}; sync $R"), |root| root.join("f").exists()), (false, true));
    // A move is undone whole, and what it replaced is back.
    let moved = "printf old >$R/f; sync $R/f; printf new >$R/g; sync $R/g; sync $R; mv $R/g $R/f";
    let is_old = |root: &Path| {
        let (f, g) = (fs::read(root.join("f")).unwrap(), fs::read(root.join("g")).ok());
        let is_old = f == b"old";
        assert_eq!(g, is_old.then(|| b"new".to_vec()));
        is_old
    };
    assert_eq!(Desk::outcomes(moved, is_old), (true, true));
    assert_eq!(Desk::outcomes(&format!("{moved}; sync $R"), is_old), (false, true));
    // The root itself stays.
    let made = "rmdir $R; mkdir $R; printf x >$R/f; sync $R/f; sync $R";
    assert_eq!(Desk::outcomes(made, |root| root.join("f").exists()), (true, false));
    let linked = "printf x >$R/f; sync $R/f; sync $R; ln $R/f $R/g";
    assert_eq!(Desk::outcomes(linked, |root| root.join("g").exists()), (true, true));
}

#[test]
fn what_a_kill_leaves_is_remembered_until_the_power_cut() {
    let desk = Desk::new();
    desk.run("printf 01234 >$R/f; sync $R/f; sync $R; printf 56789 >>$R/f; printf x >$R/g; rm $R/g");
    desk.disk.compact();
    desk.run("printf more >>$R/f");
    let mut shortest = usize::MAX;
    let whole = desk.text("f").unwrap();
    for seed in 0..20 {
        let again = Desk::new();
        again.run("printf 01234 >$R/f; sync $R/f; sync $R; printf 56789 >>$R/f; printf x >$R/g; rm $R/g");
        again.disk.compact();
        again.run("printf more >>$R/f");
        again.disk.cut_power(&mut Random::new(seed), Tail::AtRandom);
        shortest = shortest.min(again.text("f").expect("its name was synced").len());
    }
    assert_eq!((whole.len(), shortest), (14, 5));
}

#[test]
fn a_disk_fails_as_it_is_told_and_counts_it() {
    let desk = Desk::new();
    desk.disk.set(Setting::SyncDelay, 1);
    desk.run("printf x >$R/f; sync $R/f");
    assert_eq!(desk.disk.count(Count::Delayed), 1);
    desk.disk.set(Setting::FailSyncs, 1);
    assert!(!desk.try_run("sync $R/f"));
    assert_eq!((desk.disk.count(Count::SyncsFailed), desk.disk.count(Count::Syncs)), (1, 2));
    desk.disk.repair();
    desk.disk.set(Setting::FailWrites, 1);
    assert!(!desk.try_run("printf more >>$R/f"));
    assert_eq!(desk.disk.count(Count::WritesFailed), 1);
    desk.disk.repair();
    desk.disk.set(Setting::Budget, 3);
    desk.disk.set(Setting::HasBudget, 1);
    assert!(!desk.try_run("printf abcdef >>$R/f"));
    assert_eq!(desk.text("f").unwrap(), "xabc");
    assert!(desk.disk.count(Count::NoSpace) > 0);
    desk.disk.repair();
    desk.disk.set(Setting::ShortWrites, 1);
    desk.run("dd if=/dev/zero of=$R/g bs=100 count=1");
    assert_eq!(fs::metadata(desk.root().join("g")).unwrap().len(), 100);
    assert!(desk.disk.count(Count::Shortened) > 3);
    // Elsewhere nothing happens.
    let elsewhere = desk.directory.path().join("elsewhere");
    desk.disk.set(Setting::FailWrites, 1);
    desk.run(&format!("printf x >{}", elsewhere.display()));
}

/// Both ends of a connection through the link from node 1 to node 2, whose port the test has.
fn linked(cluster: &mut Cluster) -> (Links, TcpStream, TcpStream) {
    let links = Links::between(cluster);
    let target = TcpListener::bind((Ipv4Addr::LOCALHOST, cluster.node(2).peer_port())).unwrap();
    let dialled = TcpStream::connect((Ipv4Addr::LOCALHOST, links.port(1, 2))).unwrap();
    let (accepted, _) = target.accept().unwrap();
    for end in [&dialled, &accepted] {
        end.set_nodelay(true).unwrap();
        end.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    (links, dialled, accepted)
}

fn passes(from: &mut TcpStream, to: &mut TcpStream, text: &[u8]) {
    from.write_all(text).unwrap();
    let mut read = vec![0; text.len()];
    to.read_exact(&mut read).unwrap();
    assert_eq!(read, text);
}

#[test]
fn a_cut_holds_one_direction_until_it_is_healed_or_broken() {
    let mut cluster = Cluster::prepare(2, &[]);
    let (links, mut one, mut two) = linked(&mut cluster);
    passes(&mut one, &mut two, b"there");
    passes(&mut two, &mut one, b"and back");
    links.cut(1, 2);
    one.write_all(b"held").unwrap();
    wait_for("the cut to take effect", Millis(10_000), || (links.held(1, 2) > 0).then_some(()));
    passes(&mut two, &mut one, b"the other way");
    assert_eq!(links.held(2, 1), 0);
    two.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(two.read(&mut [0; 8]).is_err(), "something came through the cut");
    two.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    links.heal(1, 2);
    let mut held = [0; 4];
    two.read_exact(&mut held).unwrap();
    assert_eq!(&held, b"held");

    links.delay(2, 1, Millis(5), Millis(5));
    passes(&mut two, &mut one, b"late");
    assert_eq!((links.delayed(2, 1), links.delayed(1, 2)), (1, 0));

    links.cut(1, 2);
    one.write_all(b"lost").unwrap();
    wait_for("the cut to take effect", Millis(10_000), || (links.held(1, 2) > 1).then_some(()));
    links.break_connections(1, 2);
    links.heal(1, 2);
    assert_eq!(two.read(&mut held).unwrap_or(0), 0, "what was held on a broken connection is lost");
}

/// A history: client, key, action, when it was invoked and returned in milliseconds, and what came of it.
fn history(operations: &[(u64, &str, Action, u64, u64, Outcome)]) -> Vec<Operation> {
    let make =
        |(client, key, action, invoked, returned, outcome): &(u64, &str, Action, u64, u64, Outcome)| {
            let (invoked, returned) = (invoked * 1_000_000, returned * 1_000_000);
            let (client, key, action, outcome) =
                (*client, (*key).to_owned(), action.clone(), outcome.clone());
            Operation { client, node: 1, key, action, invoked, returned, outcome }
        };
    operations.iter().map(make).collect()
}

fn number(number: u64) -> Outcome {
    Outcome::Ok(Answer::Number(number))
}

fn doubt() -> Outcome {
    Outcome::Info("lost".to_owned())
}

/// Texts of violations, and how many are losses.
fn found(operations: &[(u64, &str, Action, u64, u64, Outcome)]) -> (Vec<String>, usize) {
    let violations = check(&history(operations));
    let losses = violations.iter().filter(|violation| violation.is_loss).count();
    (violations.into_iter().map(|violation| violation.text).collect(), losses)
}

fn is_clean(operations: &[(u64, &str, Action, u64, u64, Outcome)]) {
    assert_eq!(found(operations), (Vec::new(), 0));
}

fn is_found(operations: &[(u64, &str, Action, u64, u64, Outcome)], text: &str) {
    let (texts, _) = found(operations);
    assert!(texts.iter().any(|found| found.contains(text)), "{text:?} is not in {texts:?}");
}

#[test]
fn what_registers_and_counters_must_not_do_is_found() {
    let set = |value| Action::Set { value };
    let done = || Outcome::Ok(Answer::Done);
    is_clean(&[
        (1, "r", set(1), 0, 1, done()),
        (1, "r", set(2), 2, 3, doubt()),
        (2, "r", Action::Get, 4, 5, number(1)),
        (2, "r", Action::Get, 6, 7, number(2)),
    ]);
    let lost = [
        (1, "r", set(1), 0, 1, done()),
        (1, "r", set(2), 2, 3, done()),
        (2, "r", Action::Get, 4, 5, number(1)),
    ];
    assert_eq!(found(&lost).1, 1);
    is_found(
        &[(1, "r", set(1), 0, 1, Outcome::Fail("no".to_owned())), (2, "r", Action::Get, 2, 3, number(1))],
        "never written",
    );

    let incr = || Action::Incr;
    is_clean(&[
        (1, "c", incr(), 0, 1, number(1)),
        (1, "c", incr(), 2, 3, doubt()),
        (2, "c", incr(), 4, 5, number(3)),
        (3, "c", Action::Get, 6, 7, number(3)),
    ]);
    is_found(&[(1, "c", incr(), 0, 9, number(1)), (2, "c", incr(), 0, 9, number(1))], "twice");
    is_found(
        &[(1, "c", incr(), 0, 1, number(2)), (1, "c", incr(), 2, 3, number(1))],
        "INCR answered 1 after 2",
    );
    is_found(&[(1, "c", incr(), 0, 1, number(2))], "answered 2 after 1");
    is_found(&[(1, "c", incr(), 0, 1, number(1)), (3, "c", Action::Get, 2, 3, number(0))], "0 at node");
    is_found(&[(1, "c", incr(), 0, 1, number(1)), (3, "c", Action::Get, 2, 3, number(2))], "2 at node");
}

#[test]
fn what_locks_must_not_do_is_found() {
    let lock = |owner: &str| Action::Lock { owner: owner.to_owned(), lease_ms: 1_000 };
    let unlock = |owner: &str, token| Action::Unlock { owner: owner.to_owned(), token: Some(token) };
    is_clean(&[
        (1, "l", lock("a"), 0, 10, number(1)),
        (2, "l", lock("b"), 20, 30, Outcome::Ok(Answer::Nothing)),
        (1, "l", unlock("a", 1), 40, 60, number(1)),
        (2, "l", lock("b"), 45, 55, number(2)),
        // Its lease has ended.
        (1, "l", lock("c"), 1_100, 1_110, number(3)),
        (2, "l", unlock("b", 2), 1_120, 1_130, number(0)),
    ]);
    is_found(
        &[(1, "l", lock("a"), 0, 10, number(1)), (2, "l", lock("b"), 20, 30, number(2))],
        "while a held it",
    );
    is_found(
        &[
            (1, "l", lock("a"), 0, 10, number(2)),
            (1, "l", unlock("a", 2), 11, 12, number(1)),
            (2, "l", lock("b"), 20, 30, number(1)),
        ],
        "token 1 was granted after 2",
    );
    is_found(
        &[(1, "l", lock("a"), 0, 10, number(1)), (1, "l", unlock("a", 1), 20, 30, number(0))],
        "could not give back",
    );
    is_found(
        &[
            (1, "l", lock("a"), 0, 10, number(1)),
            (1, "l", unlock("a", 1), 11, 12, number(1)),
            (2, "l", lock("b"), 11, 30, number(1)),
        ],
        "granted twice",
    );
}

#[test]
fn what_queues_must_not_do_is_found() {
    let push = |payload: &str| Action::Push { payload: payload.to_owned() };
    let pop = || Action::Pop { lease_ms: 100 };
    let ack = |receipt: &str| Action::Ack { receipt: receipt.to_owned() };
    let id = |id: &str| Outcome::Ok(Answer::Id(id.to_owned()));
    let message = |id: &str, deliveries, payload: &str| {
        Outcome::Ok(Answer::Message { id: id.to_owned(), deliveries, payload: payload.to_owned() })
    };
    let pushed = || (1, "q", push("p"), 0, 1, id("1-0"));
    let popped = || (2, "q", pop(), 2, 3, message("1-0", 1, "p"));
    let acknowledged = || (2, "q", ack("1-0:1"), 4, 5, number(1));
    is_clean(&[
        pushed(),
        popped(),
        (2, "q", ack("1-0:1"), 4, 5, doubt()),
        (3, "q", pop(), 104, 105, message("1-0", 2, "p")),
        (3, "q", ack("1-0:2"), 106, 107, number(1)),
        (1, "q", push("lost"), 200, 201, doubt()),
    ]);
    assert_eq!(found(&[pushed(), (2, "q", pop(), 2, 3, Outcome::Ok(Answer::Nothing))]).1, 1);
    assert_eq!(found(&[pushed(), popped()]).1, 1, "nobody acknowledged it");
    assert_eq!(found(&[pushed(), popped(), (2, "q", ack("1-0:1"), 4, 5, number(0))]).1, 1);
    is_found(&[popped(), acknowledged()], "never pushed");
    is_found(
        &[pushed(), (2, "q", pop(), 2, 3, message("2-0", 1, "p")), (2, "q", ack("2-0:1"), 4, 5, number(1))],
        "came as 2-0",
    );
    is_found(
        &[pushed(), popped(), (3, "q", pop(), 2, 3, message("1-0", 1, "p")), acknowledged()],
        "delivered twice",
    );
    is_found(
        &[
            pushed(),
            popped(),
            (3, "q", pop(), 10, 20, message("1-0", 2, "p")),
            (3, "q", ack("1-0:2"), 21, 22, number(1)),
        ],
        "while 1 was leased",
    );
    is_found(
        &[pushed(), popped(), acknowledged(), (3, "q", pop(), 200, 201, message("1-0", 2, "p"))],
        "after its acknowledgement",
    );
    is_found(
        &[
            pushed(),
            (1, "q", push("r"), 2, 3, id("2-0")),
            (2, "q", pop(), 4, 5, message("2-0", 1, "r")),
            (2, "q", pop(), 6, 7, message("1-0", 1, "p")),
            (2, "q", ack("1-0:1"), 8, 9, number(1)),
            (2, "q", ack("2-0:1"), 8, 9, number(1)),
        ],
        "before p of the same producer",
    );
}
