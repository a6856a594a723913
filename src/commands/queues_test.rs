//! The queue verbs, line by line: what each replies, and what is left behind.

use crate::commands::spec::Execute;
use crate::commands::spec::ReadContext;
use crate::commands::spec::WriteContext;
use crate::commands::table;
use crate::commands::table::testing::show;
use crate::config::parse::split_words;
use crate::resp::Reply;
use crate::state::State;
use crate::state::confirm::test_support::confirm_handed;
use crate::state::notices::ClaimEnd;
use crate::state::notices::Notice;
use crate::state::notices::Origin;
use crate::state::queues;
use crate::types::ClusterTime;
use crate::types::LogIndex;
use crate::types::NodeId;
use crate::types::Term;
use crate::types::WallMillis;
use crate::types::bounds::Bounds;

/// A state, and a client of node 1.
pub(super) struct Bench {
    pub(super) state: State,
    in_transaction: bool,
    bounds: Bounds,
}

impl Bench {
    pub(super) fn new() -> Bench {
        Bench { state: State::new(16), in_transaction: false, bounds: Bounds::DEFAULT }
    }

    /// Runs words as an entry of their own at this time, as the machine does.
    pub(super) fn run_words(&mut self, now: u64, words: &[&[u8]]) -> String {
        let row = table::find(words[0]).expect("a command of the table");
        let spec = table::leaf(row, words);
        if !row.arity_allows(words.len()) || !spec.arity_allows(words.len()) {
            return format!("-ERR wrong number of arguments for '{}' command", spec.name);
        }
        let (now, wall) = (ClusterTime(now), WallMillis(1_000_000 + now));
        let state = &mut self.state;
        state.begin_entry(LogIndex(state.meta().applied.0 + 1), Term(1), now, wall);
        for at in spec.keys.positions(words) {
            state.expire_touched(0, words[at], now);
        }
        let origin = Origin { node: NodeId(1), life: 1, client: 7, address: "addr".into() };
        let (user, in_transaction, bounds) = (&b"default"[..], self.in_transaction, self.bounds);
        let result = match spec.execute {
            Execute::Write(execute) => execute(
                &mut WriteContext {
                    state,
                    db: 0,
                    user,
                    now,
                    wall,
                    origin: &origin,
                    in_transaction,
                    bounds,
                    reply_later: bounds.reply,
                },
                words,
            ),
            Execute::Read(execute) => {
                execute(&ReadContext { state, db: 0, user, now, wall, seed: 0, bounds }, words)
            }
            Execute::Session(_) => panic!("queue verbs need the state"),
        };
        queues::serve_waits(&mut self.state, now);
        for (_, queue) in self.state.known_queues() {
            queue.check();
        }
        show(&result.unwrap_or_else(Reply::from))
    }

    pub(super) fn run(&mut self, now: u64, line: &str) -> String {
        let words = split_words(line).expect("quotes are balanced");
        self.run_words(now, &words.iter().map(String::as_bytes).collect::<Vec<_>>())
    }

    pub(super) fn check(&mut self, steps: &[(u64, &str, &str)]) {
        for (now, line, reply) in steps {
            assert_eq!(self.run(*now, line), *reply, "{line} at {now}");
        }
    }

    /// One figure of QINFO.
    fn info(&mut self, now: u64, queue: &str, name: &str) -> String {
        let info = self.run(now, &format!("QINFO {queue}"));
        field(&info, name)
    }

    /// The entry that ends what is due.
    fn expire(&mut self, now: u64) {
        let (index, now) = (LogIndex(self.state.meta().applied.0 + 1), ClusterTime(now));
        self.state.begin_entry(index, Term(1), now, WallMillis(1_000_000 + now.0));
        while self.state.expire_due(now) > 0 {}
        queues::serve_waits(&mut self.state, now);
    }

    /// How waits ended since the last call: "claim: reply". What was handed to them is confirmed.
    fn ends(&mut self) -> Vec<String> {
        let told = |notice| match notice {
            Notice::ClaimHanded { claim, end, .. } | Notice::ClaimEnded { claim, end, .. } => {
                let end = match end {
                    ClaimEnd::Delivered(delivered) => {
                        show(&crate::commands::queues::popped_reply(&delivered.messages, delivered.with_meta))
                    }
                    ClaimEnd::Over => "null".to_owned(),
                    ClaimEnd::Granted(_) | ClaimEnd::Failed(_) => panic!("nobody waits for a lock"),
                };
                Some(format!("{}: {end}", claim.0))
            }
            Notice::ClaimBegan { .. } | Notice::ClaimConfirmed { .. } | Notice::Lock { .. } => None,
        };
        let notices = self.state.take_notices().0;
        confirm_handed(&mut self.state, &notices);
        notices.into_iter().filter_map(told).collect()
    }

    /// The events of a message's trace, in one line: each with its delivery and attempt.
    fn trace(&mut self, now: u64, queue: &str, id: &str) -> String {
        let trace = self.run(now, &format!("QTRACE {queue} {id}"));
        let events = trace.split("{event: ").skip(1);
        let told = events.map(|event| {
            let name = event.split(',').next().unwrap_or_default();
            format!("{name}/{}/{}", field(event, "delivery"), field(event, "attempt"))
        });
        told.collect::<Vec<_>>().join(" ")
    }
}

/// A field of a map that `show` wrote.
fn field(map: &str, name: &str) -> String {
    let at = map.find(&format!("{name}: ")).unwrap_or_else(|| panic!("no {name} in {map}"));
    let value = &map[at + name.len() + 2..];
    value.split([',', '}']).next().unwrap_or_default().trim_start_matches(':').to_owned()
}

#[test]
fn a_first_session_with_a_queue() {
    let mut bench = Bench::new();
    bench.check(&[
        (0, "QPOP FROM jobs", "null-array"),
        (0, "QLEN jobs", ":0"),
        (0, "QPUSH jobs one", "3-0"),
        (0, "QPUSH jobs two", "4-0"),
        (0, "QPUSH jobs three", "5-0"),
        (0, "QLEN jobs", ":3"),
        (0, "QPOP LEASE 1000 FROM jobs", "[[jobs 3-0:1 one :1]]"),
        (0, "QLEN jobs leased", ":1"),
        (0, "QLEN jobs READY", ":2"),
        (0, "QLEN jobs all", ":3"),
        (0, "QLEN jobs DELAYED", ":0"),
        (0, "QLEN jobs DEAD", ":0"),
        // The lease ends: the message goes back to its place, ahead of the others.
        (1_000, "qpop count 2 from jobs", "[[jobs 3-0:2 one :2] [jobs 4-0:1 two :1]]"),
        (1_000, "QACK jobs 3-0:1", ":0"),
        (1_000, "QACK jobs 3-0:2 3-0:2 9-9:1 4-0:1", ":3"),
        (1_000, "QPOP NOACK FROM jobs", "[[jobs 5-0:1 three :1]]"),
        (1_000, "QACK jobs 5-0:1", ":0"),
        (1_000, "QLEN jobs ALL", ":0"),
        // It is gone; its counters stay for an hour.
        (1_000, "EXISTS jobs", ":0"),
        (3_600_999, "QLEN jobs", ":0"),
    ]);
    assert_eq!(bench.info(3_600_999, "jobs", "acked"), "3");
    bench.expire(3_601_000);
    assert_eq!(bench.info(3_601_000, "jobs", "acked"), "0");
    assert_eq!(bench.state.earliest_deadline(), ClusterTime::NEVER);
}

#[test]
fn queues_are_served_from_left_to_right_until_the_count_is_reached() {
    Bench::new().check(&[
        (0, "QPUSH low a", "1-0"),
        (0, "QPUSH low b", "2-0"),
        (0, "QPUSH high c", "3-0"),
        (0, "QPOP COUNT 2 FROM high empty low high", "[[high 3-0:1 c :1] [low 1-0:1 a :1]]"),
        (0, "QLEN low", ":1"),
        (0, "QPOP COUNT 9 FROM high low", "[[low 2-0:1 b :1]]"),
    ]);
}

#[test]
fn priorities_are_strict_and_each_is_first_in_first_out() {
    Bench::new().check(&[
        (0, "QPUSH q a", "1-0"),
        (0, "QPUSH q b PRIORITY 9", "2-0"),
        (0, "QPUSH q c PRIORITY 3", "3-0"),
        (0, "QPUSH q d PRIORITY 9", "4-0"),
        (0, "QPUSH q e priority 0", "5-0"),
        (0, "QPOP COUNT 2 LEASE 100 FROM q", "[[q 2-0:1 b :1] [q 4-0:1 d :1]]"),
        (100, "QPUSH q f PRIORITY 9", "7-0"),
        (
            100,
            "QPOP COUNT 9 FROM q",
            "[[q 2-0:2 b :2] [q 4-0:2 d :2] [q 7-0:1 f :1] [q 3-0:1 c :1] [q 1-0:1 a :1] [q 5-0:1 e :1]]",
        ),
    ]);
}

#[test]
fn a_delay_is_waited_for_and_xx_changes_what_nobody_has() {
    Bench::new().check(&[
        (0, "QPUSH q late DELAY 500 ID x", "1-0"),
        (0, "QLEN q", ":0"),
        (0, "QLEN q DELAYED", ":1"),
        (0, "QPEEK q", "[0 [[1-0 late :0 :0 :500 ]]]"),
        (499, "QPOP FROM q", "null-array"),
        (500, "QLEN q", ":1"),
        (500, "QPUSH q ignored ID x DELAY 100 XX", "1-0"),
        (599, "QPOP FROM q", "null-array"),
        (599, "QPUSH q ignored XX ID x PRIORITY 7", "1-0"),
        (600, "QPUSH q other PRIORITY 6", "10-0"),
        (600, "QPOP LEASE 100 FROM q", "[[q 1-0:1 late :1]]"),
        (600, "QPUSH q ignored ID x XX DELAY 5", "null"),
        (600, "QPUSH q ignored ID unknown XX", "null"),
        (600, "QPUSH none ignored ID x XX", "null"),
        (600, "EXISTS none", ":0"),
        (600, "QPUSH q ignored ID x XX DELAY 0", "null"),
        (700, "QPUSH q ignored ID x XX", "1-0"),
        (700, "QPUSH q ignored ID x XX DELAY 0 PRIORITY 0", "1-0"),
        (700, "QPOP COUNT 2 FROM q", "[[q 10-0:1 other :1] [q 1-0:2 late :2]]"),
    ]);
}

#[test]
fn withmeta_tells_of_each_message_and_noack_leases_nothing() {
    Bench::new().check(&[
        (10, "QPUSH q p PRIORITY 4 GROUP g", "1-0"),
        (10, "QPUSH q r", "2-0"),
        (
            30,
            "QPOP WITHMETA CONSUMER me LEASE 700 FROM q",
            "[[q 1-0:1 p :1 {id: 1-0, priority: :4, group: g, age_ms: :20, lease_ms: :700, last_reason: }]]",
        ),
        (30, "QNACK q DELAY 0 REASON \"no luck\" IDS 1 1-0:1", ":1"),
        (
            40,
            "QPOP WITHMETA NOACK COUNT 2 FROM q",
            "[[q 1-0:2 p :2 {id: 1-0, priority: :4, group: g, age_ms: :30, lease_ms: :0, last_reason: no luck}] \
             [q 2-0:1 r :1 {id: 2-0, priority: :0, group: null, age_ms: :30, lease_ms: :0, last_reason: }]]",
        ),
        (40, "QLEN q ALL", ":0"),
        (40, "QACK q 1-0:2 2-0:1", ":0"),
        (40, "QINFO q FULL", &{
            let config = "{LEASE: 30000, MAXDELIVER: 20, BACKOFF: 1000 300000 2 20, DEADLETTER: , DEDUP: 300000, \
                          MAXLEN: 0, MAXBYTES: 0, MAXLEASED: 0, AGING: 0, RETAIN: 3600000, PAUSE: none, TTL: 0}";
            let zeros = [":0"; 10].join(" ");
            format!(
                "{{ready: :0, delayed: :0, leased: :0, dead: :0, bytes: :0, oldest_ready_ms: :0, \
                 oldest_leased_ms: :0, pushed: :2, delivered: :3, redelivered: :1, acked: :2, nacked: :1, \
                 expired_leases: :0, duplicates: :0, died: :0, deleted: :0, moved: :0, blocked_clients: :0, \
                 home: slot {}, config: {config}, priorities: [{zeros}], consumers: []}}",
                crate::types::slot::hash_slot(b"q")
            )
        }),
    ]);
}

#[test]
fn consumers_are_counted_and_ages_are_those_of_the_oldest() {
    let mut bench = Bench::new();
    bench.check(&[
        (0, "QPUSH q a", "1-0"),
        (10, "QPUSH q b", "2-0"),
        (20, "QPUSH q c PRIORITY 1", "3-0"),
        (30, "QPUSH q d", "4-0"),
        (40, "QPOP CONSUMER w1 COUNT 2 FROM q", "[[q 3-0:1 c :1] [q 1-0:1 a :1]]"),
        (40, "QPOP CONSUMER w2 FROM q", "[[q 2-0:1 b :1]]"),
    ]);
    let info = bench.run(100, "QINFO q FULL");
    assert!(info.contains("consumers: [[w1 :2] [w2 :1]]"), "{info}");
    assert_eq!(
        (field(&info, "oldest_ready_ms"), field(&info, "oldest_leased_ms")),
        ("70".into(), "100".into())
    );
    assert!(info.contains("priorities: [:1 :0 "), "{info}");
}

#[test]
fn nack_gives_back_silently_fails_or_kills() {
    let mut bench = Bench::new();
    bench.check(&[
        (0, "QCONFIG SET q BACKOFF '100 1000 2 0' MAXDELIVER 3", "OK"),
        (0, "QPUSH q m", "2-0"),
        (0, "QPOP FROM q", "[[q 2-0:1 m :1]]"),
        (0, "QNACK q SILENT IDS 1 2-0:1", ":1"),
        (0, "QNACK q SILENT IDS 1 2-0:1", ":0"),
        (0, "QPOP FROM q", "[[q 2-0:2 m :1]]"),
        (0, "QNACK q SILENT DELAY 50 REASON stopping IDS 1 2-0:2", ":1"),
        (0, "QLEN q DELAYED", ":1"),
        (50, "QPOP FROM q", "[[q 2-0:3 m :1]]"),
        (50, "QNACK q IDS 1 2-0:3", ":1"),
        (149, "QPOP FROM q", "null-array"),
        (150, "QPOP FROM q", "[[q 2-0:4 m :2]]"),
        (150, "QNACK q FAIL REASON flaky IDS 1 2-0:4", ":1"),
        (349, "QPOP FROM q", "null-array"),
        (350, "QPOP FROM q", "[[q 2-0:5 m :3]]"),
        (350, "QNACK q FAIL DELAY 0 IDS 3 2-0:5 2-0:4 9-0:1", ":1"),
        (350, "QLEN q DEAD", ":1"),
        (350, "QPEEK q STATE DEAD", "[0 [[2-0 m :3 :0 :0 flaky]]]"),
        (350, "QPUSH q n", "19-0"),
        (350, "QPOP FROM q", "[[q 19-0:1 n :1]]"),
        (350, "QNACK q FATAL REASON poison IDS 1 19-0:1", ":1"),
        (350, "QPEEK q STATE dead CURSOR 3-0", "[0 [[19-0 n :1 :0 :0 poison]]]"),
        (350, "QPUSH q o", "23-0"),
        (350, "QPOP FROM q", "[[q 23-0:1 o :1]]"),
        (350, "QNACK q FATAL IDS 1 23-0:1", ":1"),
        (350, "QPEEK q CURSOR 23-0", "[0 [[23-0 o :1 :0 :0 fatal]]]"),
    ]);
    assert_eq!((bench.info(350, "q", "died"), bench.info(350, "q", "nacked")), ("3".into(), "7".into()));
}

#[test]
fn backoff_grows_from_its_least_to_its_most_with_jitter_between() {
    for (backoff, ranges) in [
        ("100 1000 2 0", [(100, 100), (200, 200), (400, 400), (800, 800), (1_000, 1_000)]),
        ("1000 3000 3 20%", [(800, 1_200), (2_400, 3_600), (2_400, 3_600), (2_400, 3_600), (2_400, 3_600)]),
        ("0 0 2 20", [(0, 0); 5]),
    ] {
        let mut bench = Bench::new();
        assert_eq!(bench.run(0, &format!("QCONFIG SET q BACKOFF '{backoff}'")), "OK");
        bench.run(0, "QPUSH q m");
        let mut now = 0;
        for (delivery, (least, most)) in (1..).zip(ranges) {
            assert_eq!(bench.run(now, "QPOP FROM q"), format!("[[q 2-0:{delivery} m :{delivery}]]"));
            assert_eq!(bench.run(now, &format!("QNACK q IDS 1 2-0:{delivery}")), ":1");
            let peek = bench.run(now, "QPEEK q");
            let due: u64 =
                peek.split(" :").nth(3).and_then(|due| due.split(' ').next()).unwrap().parse().unwrap();
            assert!((least..=most).contains(&due), "{backoff}: {due} after {delivery}");
            now += due;
        }
    }
}

#[test]
fn a_message_dies_of_its_last_attempt_and_goes_to_the_dead_letter_queue() {
    let mut bench = Bench::new();
    bench.check(&[
        (0, "QCONFIG SET q MAXDELIVER 2 DEADLETTER dead", "OK"),
        (0, "QPUSH q m ID x GROUP g PRIORITY 5 PX 60000", "2-0"),
        (0, "QPOP LEASE 100 FROM q", "[[q 2-0:1 m :1]]"),
        (100, "QPOP LEASE 100 FROM q", "[[q 2-0:2 m :2]]"),
        (200, "QLEN q ALL", ":0"),
        // The same id; its ID and its lifetime stayed behind.
        (200, "QPEEK dead", "[0 [[2-0 m :0 :5 :0 maxdeliver]]]"),
        (200, "QPUSH q n ID x", "2-0"),
        (200, "QPUSH dead n ID x", "8-0"),
        (90_000, "QPOP COUNT 2 FROM dead", "[[dead 2-0:3 m :1] [dead 8-0:1 n :1]]"),
        // A receipt of before is stale for ever, in either queue.
        (90_000, "QACK q 2-0:2 2-0:3", ":0"),
        (90_000, "QACK dead 2-0:2", ":0"),
        (90_000, "QACK dead 2-0:3", ":1"),
        (90_000, "QACK q 2-0:3", ":0"),
    ]);
    assert_eq!((bench.info(90_000, "q", "moved"), bench.info(90_000, "q", "died")), ("1".into(), "1".into()));
    assert_eq!(bench.info(90_000, "dead", "pushed"), "2");
    assert_eq!(
        bench.trace(90_000, "dead", "2-0"),
        "PUSHED/0/0 DELIVERED/1/1 LEASE_EXPIRED/1/1 DELIVERED/2/2 LEASE_EXPIRED/2/2 DEAD/2/2 DELIVERED/3/1 ACKED/3/1"
    );
    assert_ne!(bench.trace(90_000, "q", "2-0"), "", "it was here, too");
}

#[test]
fn dead_letters_stay_where_the_target_is_no_queue() {
    Bench::new().check(&[
        (0, "SET text v", "OK"),
        (0, "QCONFIG SET q DEADLETTER text", "OK"),
        (0, "QPUSH q m", "3-0"),
        (0, "QPOP FROM q", "[[q 3-0:1 m :1]]"),
        (0, "QNACK q FATAL IDS 1 3-0:1", ":1"),
        (0, "QLEN q DEAD", ":1"),
        (0, "GET text", "v"),
    ]);
}

#[test]
fn redrive_gives_new_attempts_here_or_elsewhere_and_reuses_no_receipt() {
    let mut bench = Bench::new();
    for _ in 0..5 {
        bench.run(0, "QPUSH q m");
    }
    bench.check(&[
        (
            0,
            "QPOP COUNT 5 FROM q",
            "[[q 1-0:1 m :1] [q 2-0:1 m :1] [q 3-0:1 m :1] [q 4-0:1 m :1] [q 5-0:1 m :1]]",
        ),
        (0, "QNACK q FATAL IDS 4 1-0:1 2-0:1 3-0:1 4-0:1", ":4"),
        // Only dead ones are moved.
        (0, "QREDRIVE q IDS 3 2-0 5-0 9-0", ":1"),
        (0, "QPOP FROM q", "[[q 2-0:2 m :1]]"),
        (0, "QACK q 2-0:1", ":0"),
        (0, "QACK q 2-0:2", ":1"),
        (0, "QREDRIVE q COUNT 1 TO other", ":1"),
        (0, "QPOP FROM other", "[[other 1-0:2 m :1]]"),
        (0, "QACK other 1-0:1", ":0"),
        (0, "QNACK q FATAL IDS 1 1-0:1", ":0"),
        (0, "QREDRIVE q TO q", ":2"),
        (0, "QLEN q", ":2"),
        (0, "QREDRIVE q", ":0"),
        (0, "QREDRIVE none TO other", ":0"),
        (0, "QREDRIVE none", ":0"),
        (0, "EXISTS none", ":0"),
        (0, "QLEN q DEAD", ":0"),
    ]);
    assert_eq!(
        bench.trace(0, "other", "1-0"),
        "PUSHED/0/0 DELIVERED/1/1 NACKED/1/1 DEAD/1/1 REDRIVEN/1/0 DELIVERED/2/1"
    );
    assert_eq!((bench.info(0, "q", "moved"), bench.info(0, "other", "pushed")), ("1".into(), "1".into()));
}

#[test]
fn messages_are_deleted_by_id_by_state_or_all() {
    let mut bench = Bench::new();
    for delay in [0, 0, 0, 0, 100, 100] {
        bench.run(0, &format!("QPUSH q m DELAY {delay}"));
    }
    bench.check(&[
        (0, "QPOP COUNT 2 FROM q", "[[q 1-0:1 m :1] [q 2-0:1 m :1]]"),
        (0, "QNACK q FATAL IDS 1 2-0:1", ":1"),
        (0, "QDEL q IDS 3 1-0 3-0 77-0", ":2"),
        (0, "QACK q 1-0:1", ":0"),
        (0, "QEXTEND q 1000 1-0:1", ":0"),
        (0, "QDEL q STATE LEASED", ":0"),
        (0, "QDEL q STATE dead", ":1"),
        (0, "QDEL q STATE DELAYED", ":2"),
        (0, "QPUSH q n", "15-0"),
        (0, "QDEL q all", ":2"),
        (0, "QDEL q ALL", ":0"),
        (0, "QDEL none ALL", ":0"),
        (0, "QLEN q ALL", ":0"),
    ]);
    assert_eq!(bench.info(0, "q", "deleted"), "7");
    assert_eq!(bench.trace(0, "q", "1-0"), "PUSHED/0/0 DELIVERED/1/1 DELETED/1/1");
    assert_eq!(bench.trace(0, "q", "5-0"), "PUSHED/0/0 DELETED/0/0");
}

#[test]
fn a_lease_is_set_to_end_after_so_long_from_now_on() {
    Bench::new().check(&[
        (0, "QPUSH q m", "1-0"),
        (0, "QPOP LEASE 1000 FROM q", "[[q 1-0:1 m :1]]"),
        (900, "QEXTEND q 500 1-0:1 1-0:2 2-0:1", ":1"),
        (1_399, "QLEN q LEASED", ":1"),
        (1_400, "QEXTEND q 500 1-0:1", ":0"),
        (1_400, "QPOP LEASE 1000 FROM q", "[[q 1-0:2 m :2]]"),
        // Shorter is possible, too.
        (1_400, "QEXTEND q 100 1-0:2", ":1"),
        (1_500, "QLEN q", ":1"),
        (1_500, "QEXTEND none 100 1-0:2", ":0"),
    ]);
}

#[test]
fn an_id_is_taken_once_while_its_message_is_there_and_a_while_after() {
    let mut bench = Bench::new();
    bench.check(&[
        (0, "QCONFIG SET q DEDUP 1000", "OK"),
        (0, "QPUSH q a ID x", "2-0"),
        (0, "QPUSH q b ID x", "2-0"),
        (0, "QPUSH q b ID y", "4-0"),
        (0, "QPOP FROM q", "[[q 2-0:1 a :1]]"),
        (0, "QPUSH q b ID x", "2-0"),
        (0, "QNACK q FATAL IDS 1 2-0:1", ":1"),
        (50, "QPUSH q b ID x", "2-0"),
        (50, "QREDRIVE q", ":1"),
        (50, "QPOP FROM q", "[[q 2-0:2 a :1]]"),
        (50, "QACK q 2-0:2", ":1"),
        (1_049, "QPUSH q b ID x", "2-0"),
        (1_050, "QPUSH q b ID x", "13-0"),
        // Deleted ones are forgotten at once.
        (1_050, "QDEL q IDS 1 13-0", ":1"),
        (1_050, "QPUSH q b ID x", "15-0"),
        // So are finished ones without a window, and IDs are the queue's own.
        (1_050, "QCONFIG SET q DEDUP 0", "OK"),
        (1_050, "QPUSH other b ID x", "17-0"),
        (1_050, "QPOP NOACK COUNT 2 FROM q", "[[q 4-0:1 b :1] [q 15-0:1 b :1]]"),
        (1_050, "QPUSH q c ID x", "19-0"),
    ]);
    assert_eq!(bench.info(1_050, "q", "duplicates"), "4");
}

#[test]
fn the_id_of_a_dead_letter_is_known_where_it_died_and_a_redrive_finds_it() {
    Bench::new().check(&[
        (0, "QCONFIG SET q MAXDELIVER 1 DEADLETTER d DEDUP 1000", "OK"),
        (0, "QPUSH q x ID i", "2-0"),
        (0, "QPOP FROM q", "[[q 2-0:1 x :1]]"),
        (0, "QNACK q IDS 1 2-0:1", ":1"),
        (0, "QLEN q ALL", ":0"),
        (999, "QPUSH q y ID i", "2-0"),
        (999, "QPUSH q y ID i XX", "null"),
        // The dead letter queue's IDs are its own.
        (999, "QPUSH d z ID i", "8-0"),
        (999, "QPOP FROM d", "[[d 2-0:2 x :1]]"),
        (999, "QNACK d FATAL IDS 1 2-0:2", ":1"),
        (999, "QREDRIVE d TO q", ":1"),
        // It is back, and its ID is that of a message which is there.
        (9_000, "QPUSH q y ID i", "2-0"),
        (9_000, "QPOP NOACK FROM q", "[[q 2-0:3 x :1]]"),
        (9_999, "QPUSH q y ID i", "2-0"),
        (10_000, "QPUSH q y ID i", "15-0"),
        (10_000, "QLEN d ALL", ":1"),
    ]);
}

#[test]
fn a_redrive_leaves_a_message_where_it_is_while_another_one_has_its_id() {
    Bench::new().check(&[
        (0, "QCONFIG SET q MAXDELIVER 1 DEADLETTER d DEDUP 1000", "OK"),
        (0, "QPUSH q x ID i", "2-0"),
        (0, "QPUSH q other ID j", "3-0"),
        (0, "QPOP COUNT 2 FROM q", "[[q 2-0:1 x :1] [q 3-0:1 other :1]]"),
        (0, "QNACK q IDS 2 2-0:1 3-0:1", ":2"),
        (0, "QPOP COUNT 2 FROM d", "[[d 2-0:2 x :1] [d 3-0:2 other :1]]"),
        (0, "QNACK d FATAL IDS 2 2-0:2 3-0:2", ":2"),
        // It was away for longer than its ID is remembered.
        (1_000, "QPUSH q y ID i", "8-0"),
        // The first of them does not keep back the second.
        (1_000, "QREDRIVE d COUNT 1 TO q", ":1"),
        (1_000, "QLEN d DEAD", ":1"),
        (1_000, "QPOP COUNT 9 NOACK FROM q", "[[q 3-0:3 other :1] [q 8-0:1 y :1]]"),
        (1_999, "QREDRIVE d TO q", ":0"),
        (2_000, "QREDRIVE d IDS 1 2-0 TO q", ":1"),
        (2_000, "QPUSH q z ID i", "2-0"),
        // Under another queue's name it is known as well, and not any more where it died.
        (2_000, "QPOP FROM q", "[[q 2-0:3 x :1]]"),
        (2_000, "QCONFIG SET q DEADLETTER ''", "OK"),
        (2_000, "QNACK q FATAL IDS 1 2-0:3", ":1"),
        (2_000, "QREDRIVE q TO r", ":1"),
        (2_000, "QPUSH r z ID i", "2-0"),
        (2_999, "QPUSH q z ID i", "2-0"),
        (3_000, "QPUSH q z ID i", "21-0"),
        (9_000, "QPUSH r z ID i", "2-0"),
    ]);
}

#[test]
fn an_id_goes_along_a_chain_of_dead_letter_queues_and_round_a_circle() {
    Bench::new().check(&[
        (0, "QCONFIG SET a MAXDELIVER 1 DEADLETTER b DEDUP 500", "OK"),
        (0, "QCONFIG SET b MAXDELIVER 1 DEADLETTER c", "OK"),
        (0, "QCONFIG SET c MAXDELIVER 1 DEADLETTER a", "OK"),
        (0, "QPUSH a m ID i PX 100", "4-0"),
        // It dies of its lifetime, and then of attempts.
        (100, "QLEN a ALL", ":0"),
        (100, "QPUSH a n ID i", "4-0"),
        (100, "QPOP FROM b", "[[b 4-0:1 m :1]]"),
        (100, "QNACK b IDS 1 4-0:1", ":1"),
        (100, "QPOP FROM c", "[[c 4-0:2 m :1]]"),
        (100, "QNACK c FATAL IDS 1 4-0:2", ":1"),
        // Back where it began it has its ID again, for as long as it is there.
        (100, "QLEN a", ":1"),
        (9_000, "QPUSH a n ID i", "4-0"),
        (9_000, "QPOP FROM a", "[[a 4-0:3 m :1]]"),
        (9_000, "QNACK a IDS 1 4-0:3", ":1"),
        // It comes round again, and this time another one has taken its ID.
        (9_500, "QPUSH a n ID i", "15-0"),
        (9_500, "QPOP FROM b", "[[b 4-0:4 m :1]]"),
        (9_500, "QNACK b IDS 1 4-0:4", ":1"),
        (9_500, "QPOP FROM c", "[[c 4-0:5 m :1]]"),
        (9_500, "QNACK c IDS 1 4-0:5", ":1"),
        (9_500, "QPOP NOACK FROM a", "[[a 4-0:6 m :1]]"),
        (9_500, "QPUSH a o ID i", "15-0"),
    ]);
}

#[test]
fn a_queue_with_nothing_in_it_is_gone_and_found_again() {
    let mut bench = Bench::new();
    bench.check(&[
        (0, "QPUSH q m ID i", "1-0"),
        (0, "QPOP LEASE 100000 FROM q", "[[q 1-0:1 m :1]]"),
        (100, "QACK q 1-0:1", ":1"),
        (100, "EXISTS q", ":0"),
        (100, "TYPE q", "+none"),
        (100, "DBSIZE", ":0"),
        // What clients may still ask of it is known.
        (100, "QACK q 1-0:1", ":1"),
        (100, "QNACK q IDS 1 1-0:1", ":0"),
        (100, "QPUSH q again ID i", "1-0"),
        (100, "QPUSH q never ID i XX", "null"),
        (100, "QPOP FROM q", "null-array"),
        (100, "QREDRIVE q", ":0"),
        (100, "QDEL q ALL", ":0"),
        (100, "EXISTS q", ":0"),
        // Its name is free, and what takes it is no queue.
        (100, "SET q text", "OK"),
        (100, "QACK q 1-0:1", "-WRONGTYPE Operation against a key holding the wrong kind of value"),
        (100, "GET q", "text"),
        (100, "DEL q", ":1"),
        (100, "LOCK q me PX 100", ":1"),
        (200, "QPUSH q n ID i", "1-0"),
        (200, "UNLOCK q me", ":0"),
        (200, "QPUSH q n", "22-0"),
        (200, "EXISTS q", ":1"),
        (200, "QACK q 1-0:1", ":1"),
        (200, "QPUSH q o ID i", "1-0"),
        (300_099, "QPUSH q o ID i", "1-0"),
        (300_100, "QPUSH q o ID i", "27-0"),
    ]);
    assert_eq!(bench.trace(300_100, "q", "1-0"), "PUSHED/0/0 DELIVERED/1/1 ACKED/1/1");
    assert_eq!(
        (bench.info(300_100, "q", "pushed"), bench.info(300_100, "q", "acked")),
        ("3".into(), "1".into())
    );
    assert_eq!(bench.info(300_100, "q", "duplicates"), "4");
}

#[test]
fn what_is_remembered_of_a_queue_that_is_gone_is_forgotten_in_time() {
    let mut bench = Bench::new();
    bench.check(&[
        (0, "QCONFIG SET q RETAIN 1000 DEDUP 700000", "OK"),
        (0, "QPUSH q m ID i", "2-0"),
        (0, "QPOP FROM q", "[[q 2-0:1 m :1]]"),
        (0, "QACK q 2-0:1", ":1"),
        (0, "EXISTS q", ":1"),
        (0, "QDEL q ALL", ":0"),
        (0, "EXISTS q", ":0"),
        (0, "QPUSH configured m RETAIN 5", "-ERR syntax error: QPUSH has no option 'RETAIN'"),
    ]);
    // The trace goes first, then the receipt, then the ID, and with it the queue.
    assert_ne!(bench.run(999, "QTRACE q 2-0"), "[]");
    bench.check(&[
        (1_000, "QTRACE q 2-0", "[]"),
        (599_999, "QACK q 2-0:1", ":1"),
        (600_000, "QACK q 2-0:1", ":0"),
        (699_999, "QPUSH q n ID i", "2-0"),
    ]);
    assert_eq!(bench.info(699_999, "q", "pushed"), "1");
    bench.expire(700_000);
    assert_eq!(bench.info(700_000, "q", "pushed"), "0");
    assert_eq!(bench.state.earliest_deadline(), ClusterTime::NEVER);
    // One of which nothing need be remembered goes at once.
    bench.check(&[
        (700_000, "QCONFIG SET r LEASE 1000", "OK"),
        (700_000, "EXISTS r", ":1"),
        (700_000, "QCONFIG SET r LEASE 30000", "OK"),
        (700_000, "EXISTS r", ":0"),
    ]);
    bench.expire(700_000);
    assert_eq!(bench.state.earliest_deadline(), ClusterTime::NEVER);
    assert_eq!(bench.state.known_queues().count(), 0);
}

#[test]
fn qdel_all_removes_a_queue_with_its_configuration() {
    let mut bench = Bench::new();
    let defaults = bench.run(0, "QCONFIG GET q");
    bench.check(&[
        (0, "QCONFIG SET q PAUSE out MAXLEN 3 DEADLETTER d", "OK"),
        (0, "QPUSH q m", "3-0"),
        (0, "QPUSH q n DELAY 100", "4-0"),
        (0, "QDEL q IDS 2 3-0 4-0", ":2"),
        (0, "EXISTS q", ":1"),
        (0, "QPUSH q o", "7-0"),
        (0, "QPOP BLOCK 0 FROM q", "waiting 1"),
        (0, "QDEL q ALL", ":1"),
        (0, "EXISTS q", ":0"),
        (0, "QCONFIG GET q", &defaults),
        // Who waits for it still does.
        (0, "QPUSH q p", "12-0"),
    ]);
    assert_eq!(bench.ends(), ["1: [[q 12-0:1 p :1]]"]);
    assert_eq!(bench.info(0, "q", "deleted"), "3");
}

#[test]
fn of_a_group_one_is_in_flight_and_the_next_comes_when_it_is_done() {
    let mut bench = Bench::new();
    bench.check(&[
        (0, "QCONFIG SET q MAXDELIVER 2", "OK"),
        (0, "QPUSH q a1 GROUP a", "2-0"),
        (0, "QPUSH q a2 GROUP a PRIORITY 9", "3-0"),
        (0, "QPUSH q b1 GROUP b", "4-0"),
        (0, "QPUSH q alone", "5-0"),
        (0, "QLEN q", ":4"),
        (0, "QPOP COUNT 9 LEASE 100 FROM q", "[[q 2-0:1 a1 :1] [q 4-0:1 b1 :1] [q 5-0:1 alone :1]]"),
        (0, "QPOP FROM q", "null-array"),
        (0, "QACK q 4-0:1 5-0:1", ":2"),
        (0, "QPOP FROM q", "null-array"),
        // It failed: those behind it wait for it.
        (0, "QNACK q DELAY 50 IDS 1 2-0:1", ":1"),
        (0, "QPOP FROM q", "null-array"),
        (50, "QPOP COUNT 9 LEASE 100 FROM q", "[[q 2-0:2 a1 :2]]"),
        // It is dead: it holds up nobody.
        (150, "QPOP COUNT 9 LEASE 100 FROM q", "[[q 3-0:1 a2 :1]]"),
        (150, "QREDRIVE q", ":1"),
        (150, "QPOP FROM q", "null-array"),
        (150, "QACK q 3-0:1", ":1"),
        (150, "QPOP NOACK FROM q", "[[q 2-0:3 a1 :1]]"),
    ]);
}

#[test]
fn a_message_dies_when_its_lifetime_is_over_but_not_in_a_consumer_s_hands() {
    let mut bench = Bench::new();
    bench.check(&[
        (0, "QPUSH q a EX 1", "1-0"),
        (0, "QPUSH q b PX 500 DELAY 2000", "2-0"),
        (0, "QPUSH q c PX 700", "3-0"),
        (499, "QLEN q DEAD", ":0"),
        (500, "QPEEK q STATE DEAD", "[0 [[2-0 b :0 :0 :0 expired]]]"),
        (600, "QPOP COUNT 2 LEASE 1000 FROM q", "[[q 1-0:1 a :1] [q 3-0:1 c :1]]"),
        (1_200, "QACK q 1-0:1", ":1"),
        (1_600, "QPEEK q CURSOR 3-0", "[0 [[3-0 c :1 :0 :0 expired]]]"),
        // Sent on their way again, they have no lifetime any more.
        (1_600, "QREDRIVE q", ":2"),
        (1_600, "QLEN q", ":2"),
        // Messages without a lifetime of their own have the queue's.
        (1_600, "QCONFIG SET q TTL 100", "OK"),
        (1_600, "QPUSH q d", "12-0"),
        (1_600, "QPUSH q e PX 50", "13-0"),
        (1_650, "QLEN q", ":3"),
        (1_700, "QLEN q", ":2"),
    ]);
    assert_eq!(
        bench.trace(1_700, "q", "3-0"),
        "PUSHED/0/0 DELIVERED/1/1 LEASE_EXPIRED/1/1 DEAD/1/1 REDRIVEN/1/0"
    );
}

#[test]
fn the_same_qack_sent_again_counts_again_for_ten_minutes() {
    Bench::new().check(&[
        (0, "QPUSH q m", "1-0"),
        (0, "QPUSH q n", "2-0"),
        (0, "QPOP COUNT 2 LEASE 100 FROM q", "[[q 1-0:1 m :1] [q 2-0:1 n :1]]"),
        (100, "QPOP FROM q", "[[q 1-0:2 m :2]]"),
        (100, "QACK q 1-0:2", ":1"),
        (100, "QACK q 1-0:2 1-0:2 1-0:1 1-0:3 2-0:1", ":2"),
        (100, "QACK other 1-0:2", ":0"),
        (600_099, "QACK q 1-0:2", ":1"),
        (600_100, "QACK q 1-0:2", ":0"),
    ]);
}

#[test]
fn attributes_are_set_together_and_read_back() {
    let mut bench = Bench::new();
    let defaults = bench.run(0, "QCONFIG GET q");
    assert_eq!(bench.run(0, "EXISTS q"), ":0", "asking creates nothing");
    let all = "LEASE 5000 MAXDELIVER 0 BACKOFF '5 50 1.5 7%' DEADLETTER d DEDUP 1 MAXLEN 2 MAXBYTES 3 MAXLEASED 4 \
               AGING 5 RETAIN 6 PAUSE OUT TTL 7";
    assert_eq!(bench.run(0, &format!("QCONFIG SET q {all}")), "OK");
    let now = "{LEASE: 5000, MAXDELIVER: 0, BACKOFF: 5 50 1.5 7, DEADLETTER: d, DEDUP: 1, MAXLEN: 2, MAXBYTES: 3, \
               MAXLEASED: 4, AGING: 5, RETAIN: 6, PAUSE: out, TTL: 7}";
    assert_eq!(bench.run(0, "qconfig get q"), now);
    assert_eq!(bench.run(0, "QCONFIG SET q pause none deadletter \"\""), "OK");
    assert_eq!(
        bench.run(0, "QCONFIG GET q"),
        now.replace("PAUSE: out", "PAUSE: none").replace(": d,", ": ,")
    );
    let info = bench.run(0, "QINFO q");
    assert!(info.contains("config: {LEASE: 5000, MAXDELIVER: 0"), "{info}");
    assert_eq!(bench.run(0, "QCONFIG GET other"), defaults);
}

#[test]
fn lease_applies_where_qpop_says_nothing() {
    Bench::new().check(&[
        (0, "QCONFIG SET q LEASE 200", "OK"),
        (0, "QPUSH q m", "2-0"),
        (0, "QPOP FROM q", "[[q 2-0:1 m :1]]"),
        (199, "QLEN q", ":0"),
        (200, "QPOP LEASE 100 FROM q", "[[q 2-0:2 m :2]]"),
        (300, "QLEN q", ":1"),
    ]);
}

#[test]
fn without_maxdeliver_messages_never_die_of_attempts() {
    let mut bench = Bench::new();
    bench.run(0, "QCONFIG SET q MAXDELIVER 0");
    bench.run(0, "QPUSH q m");
    for attempt in 1..100 {
        assert_eq!(bench.run(0, "QPOP FROM q"), format!("[[q 2-0:{attempt} m :{attempt}]]"));
        assert_eq!(bench.run(0, &format!("QNACK q DELAY 0 IDS 1 2-0:{attempt}")), ":1");
    }
    assert_eq!(bench.info(0, "q", "dead"), "0");
}

#[test]
fn pause_stops_what_comes_in_or_what_goes_out() {
    let full = |pause: &str| format!("-QFULL q takes no messages: PAUSE is {pause}");
    Bench::new().check(&[
        (0, "QPUSH q m ID x", "1-0"),
        (0, "QPUSH q n", "2-0"),
        (0, "QCONFIG SET q PAUSE in", "OK"),
        (0, "QPUSH q o", &full("in")),
        (0, "QPUSH q o ID x", "1-0"),
        (0, "QPOP FROM q", "[[q 1-0:1 m :1]]"),
        (0, "QCONFIG SET q PAUSE Out", "OK"),
        (0, "QPUSH q o", "8-0"),
        (0, "QPOP FROM q", "null-array"),
        (0, "QACK q 1-0:1", ":1"),
        (0, "QCONFIG SET q PAUSE all", "OK"),
        (0, "QPUSH q o", &full("all")),
        (0, "QPOP FROM q", "null-array"),
        (0, "QLEN q", ":2"),
        (0, "QCONFIG SET q PAUSE none", "OK"),
        (0, "QPOP COUNT 9 FROM q", "[[q 2-0:1 n :1] [q 8-0:1 o :1]]"),
    ]);
}

#[test]
fn a_full_queue_takes_no_more_and_the_dead_do_not_count() {
    Bench::new().check(&[
        (0, "QPUSH q a MAXLEN 1", "1-0"),
        (0, "QPUSH q b MAXLEN 1", "-QFULL q holds 1 messages, MAXLEN 1"),
        (0, "QPUSH q b MAXLEN 2", "3-0"),
        (0, "QCONFIG SET q MAXLEN 3", "OK"),
        (0, "QPUSH q c MAXLEN 9 DELAY 1000", "5-0"),
        (0, "QPUSH q d MAXLEN 9", "-QFULL q holds 3 messages, MAXLEN 3"),
        (0, "QPUSH q d", "-QFULL q holds 3 messages, MAXLEN 3"),
        (0, "QPUSH q d MAXLEN 2", "-QFULL q holds 3 messages, MAXLEN 2"),
        (0, "QPOP FROM q", "[[q 1-0:1 a :1]]"),
        (0, "QPUSH q d", "-QFULL q holds 3 messages, MAXLEN 3"),
        (0, "QNACK q FATAL IDS 1 1-0:1", ":1"),
        (0, "QPUSH q d", "12-0"),
        (0, "QPUSH new a MAXLEN 0", "-QFULL new holds 0 messages, MAXLEN 0"),
        (0, "EXISTS new", ":0"),
        (0, "QCONFIG SET b MAXBYTES 5", "OK"),
        (0, "QPUSH b 123", "16-0"),
        (0, "QPUSH b 123", "-QFULL b would hold 6 bytes, MAXBYTES 5"),
        (0, "QPUSH b 12", "18-0"),
        (0, "QPUSH b ''", "19-0"),
        (0, "QPOP COUNT 2 NOACK FROM b", "[[b 16-0:1 123 :1] [b 18-0:1 12 :1]]"),
        (0, "QPUSH b 12345", "21-0"),
    ]);
}

#[test]
fn maxleased_bounds_what_is_in_flight() {
    Bench::new().check(&[
        (0, "QCONFIG SET q MAXLEASED 2", "OK"),
        (0, "QPUSH q a", "2-0"),
        (0, "QPUSH q b", "3-0"),
        (0, "QPUSH q c", "4-0"),
        (0, "QPOP COUNT 3 LEASE 100 FROM q", "[[q 2-0:1 a :1] [q 3-0:1 b :1]]"),
        (0, "QPOP FROM q", "null-array"),
        (0, "QPOP NOACK FROM q", "null-array"),
        (0, "QACK q 2-0:1", ":1"),
        (0, "QPOP NOACK COUNT 9 FROM q", "[[q 4-0:1 c :1]]"),
        (100, "QPOP COUNT 9 FROM q", "[[q 3-0:2 b :2]]"),
    ]);
}

#[test]
fn aging_lets_old_messages_pass_younger_ones_of_higher_priority() {
    Bench::new().check(&[
        (0, "QCONFIG SET q AGING 100", "OK"),
        (0, "QPUSH q old PRIORITY 0", "2-0"),
        (150, "QPUSH q young PRIORITY 1", "3-0"),
        // Both count one: the older id goes first.
        (150, "QPOP LEASE 100 FROM q", "[[q 2-0:1 old :1]]"),
        // It comes back, and has not waited since; the other has for 100 milliseconds.
        (250, "QPUSH q high PRIORITY 9", "5-0"),
        (250, "QPOP COUNT 3 FROM q", "[[q 5-0:1 high :1] [q 3-0:1 young :1] [q 2-0:2 old :2]]"),
    ]);
}

#[test]
fn aging_counts_from_when_a_message_could_be_handed_out() {
    for (before, low) in [
        // A delay, a wait for the next attempt, a lease that ended, one that was given back.
        (&["QPUSH q low DELAY 1500"][..], "low"),
        (&["QPUSH q low", "QPOP FROM q", "QNACK q DELAY 1500 IDS 1 2-0:1"], "low"),
        (&["QPUSH q low", "QPOP LEASE 1500 FROM q"], "low"),
        (&["QPUSH q low", "QPOP LEASE 9000 FROM q", "@1500 QNACK q SILENT IDS 1 2-0:1"], "low"),
        // It was dead, here or elsewhere.
        (&["QPUSH q low", "QPOP FROM q", "QNACK q FATAL IDS 1 2-0:1", "@1500 QREDRIVE q"], "low"),
        (&["QPUSH d low", "QPOP FROM d", "QNACK d FATAL IDS 1 2-0:1", "@1500 QREDRIVE d TO q"], "low"),
        // An earlier message of its group held it up.
        (&["QPUSH q a GROUP g", "QPUSH q low GROUP g", "QPOP FROM q", "@1500 QACK q 2-0:1"], "low"),
        (&["QPUSH q a GROUP g", "QPUSH q low GROUP g", "QPOP FROM q", "@1500 QDEL q IDS 1 2-0"], "low"),
        (
            &["QPUSH q a GROUP g", "QPUSH q low GROUP g", "QPOP FROM q", "@1500 QNACK q FATAL IDS 1 2-0:1"],
            "low",
        ),
        (&["QPUSH q a GROUP g DELAY 9000 PX 1500", "QPUSH q low GROUP g"], "low"),
    ] {
        let mut bench = Bench::new();
        bench.run(0, "QCONFIG SET q AGING 100");
        for line in before {
            let (now, line) = match line.strip_prefix("@1500 ") {
                Some(line) => (1_500, line),
                None => (0, *line),
            };
            let reply = bench.run(now, line);
            assert!(!reply.starts_with('-') && reply != ":0", "{line}: {reply}");
        }
        bench.expire(1_500);
        // Nothing of it is forgotten with the process.
        crate::state::test_support::TestStore::new().reopen(&mut bench.state);
        let mut goes_first = |now: u64, priority: u8| {
            let id = bench.run(now, &format!("QPUSH q urgent PRIORITY {priority}"));
            let popped = bench.run(now, "QPOP LEASE 100000 FROM q");
            bench.run(now, &format!("QDEL q IDS 1 {id}"));
            if popped.contains("urgent") { "urgent" } else { "low" }
        };
        assert_eq!(goes_first(1_699, 2), "urgent", "{before:?}");
        assert_eq!(goes_first(1_700, 2), low, "{before:?}");
    }
}

#[test]
fn who_stays_ready_goes_on_waiting() {
    Bench::new().check(&[
        (0, "QCONFIG SET q AGING 100", "OK"),
        (0, "QPUSH q low ID i", "2-0"),
        (150, "QPUSH q - ID i XX DELAY 0 PRIORITY 1", "2-0"),
        (300, "QPUSH q urgent PRIORITY 3", "4-0"),
        (300, "QPOP FROM q", "[[q 2-0:1 low :1]]"),
    ]);
}

#[test]
fn peek_goes_on_from_its_cursor_and_tells_one_state_or_all() {
    let mut bench = Bench::new();
    for n in 1..=25 {
        bench.run(0, &format!("QPUSH q m{n} PRIORITY {}", n % 3));
    }
    let page = bench.run(0, "QPEEK q");
    assert!(page.starts_with("[11-0 [[1-0 m1 :0 :1 :0 ] [2-0 m2 :0 :2 :0 ] "), "{page}");
    assert!(bench.run(0, "QPEEK q CURSOR 11-0").starts_with("[21-0 [[11-0 "));
    let last = bench.run(0, "QPEEK q CURSOR 21-0 COUNT 1000");
    assert!(last.starts_with("[0 [[21-0 ") && last.ends_with("[25-0 m25 :0 :1 :0 ]]]"), "{last}");
    assert_eq!(bench.run(0, "QPEEK q COUNT 1 CURSOR 0"), "[2-0 [[1-0 m1 :0 :1 :0 ]]]");
    let popped = bench.run(0, "QPOP LEASE 500 COUNT 2 FROM q");
    assert_eq!(popped, "[[q 2-0:1 m2 :1] [q 5-0:1 m5 :1]]");
    bench.check(&[
        (100, "QPEEK q STATE LEASED", "[0 [[2-0 m2 :1 :2 :400 ] [5-0 m5 :1 :2 :400 ]]]"),
        (100, "QPEEK q STATE LEASED COUNT 1", "[5-0 [[2-0 m2 :1 :2 :400 ]]]"),
        (100, "QPEEK q STATE leased COUNT 1 CURSOR 5-0", "[0 [[5-0 m5 :1 :2 :400 ]]]"),
        (100, "QPEEK q STATE READY COUNT 2", "[4-0 [[1-0 m1 :0 :1 :0 ] [3-0 m3 :0 :0 :0 ]]]"),
        (100, "QPEEK q STATE DELAYED", "[0 []]"),
        (100, "QPEEK q CURSOR 99-0", "[0 []]"),
        (100, "QPEEK none", "[0 []]"),
    ]);
}

#[test]
fn a_trace_tells_a_whole_life_and_is_kept_a_while() {
    let mut bench = Bench::new();
    bench.check(&[
        (0, "QCONFIG SET q RETAIN 1000", "OK"),
        (5, "QPUSH q m DELAY 5", "2-0"),
        (5, "QTRACE q 2-0", "[{event: PUSHED, index: :2, delivery: :0, attempt: :0, consumer: , node: :0, at_ms: :1000005, reason: }]"),
        (10, "QPOP LEASE 100 CONSUMER w1 FROM q", "[[q 2-0:1 m :1]]"),
        (20, "QEXTEND q 200 2-0:1", ":1"),
        (20, "QNACK q SILENT IDS 1 2-0:1", ":1"),
        (30, "QPOP LEASE 100 CONSUMER w2 FROM q", "[[q 2-0:2 m :1]]"),
        (40, "QNACK q DELAY 0 REASON broken IDS 1 2-0:2", ":1"),
        (50, "QPOP LEASE 100 FROM q", "[[q 2-0:3 m :2]]"),
        (150, "QPOP FROM q", "[[q 2-0:4 m :3]]"),
        (150, "QNACK q FATAL IDS 1 2-0:4", ":1"),
        (160, "QREDRIVE q", ":1"),
        (170, "QPOP FROM q", "[[q 2-0:5 m :1]]"),
        (180, "QACK q 2-0:5", ":1"),
    ]);
    let whole = "PUSHED/0/0 DELIVERED/1/1 EXTENDED/1/1 RETURNED/1/0 DELIVERED/2/1 NACKED/2/1 DELIVERED/3/2 \
                 LEASE_EXPIRED/3/2 DELIVERED/4/3 NACKED/4/3 DEAD/4/3 REDRIVEN/4/0 DELIVERED/5/1 ACKED/5/1";
    assert_eq!(bench.trace(180, "q", "2-0"), whole);
    let told = bench.run(180, "QTRACE q 2-0");
    for event in [
        "{event: DELIVERED, index: :4, delivery: :1, attempt: :1, consumer: w1, node: :1, at_ms: :1000010, reason: }",
        "{event: NACKED, index: :8, delivery: :2, attempt: :1, consumer: w2, node: :1, at_ms: :1000040, reason: broken}",
        "{event: LEASE_EXPIRED, index: :10, delivery: :3, attempt: :2, consumer: , node: :0, at_ms: :1000150, reason: }",
        "{event: ACKED, index: :14, delivery: :5, attempt: :1, consumer: , node: :1, at_ms: :1000180, reason: }",
    ] {
        assert!(told.contains(event), "{event} in {told}");
    }
    assert_eq!(bench.trace(1_179, "q", "2-0"), whole);
    bench.check(&[
        (1_180, "QTRACE q 2-0", "[]"),
        (1_180, "QTRACE q 9-9", "[]"),
        (1_180, "QTRACE none 2-0", "[]"),
    ]);
}

#[test]
fn counts_of_all_states_add_up_to_what_was_pushed_whatever_is_done() {
    let mut bench = Bench::new();
    let lines = [
        "QPUSH q m",
        "QPUSH q m DELAY 300",
        "QPUSH q m PX 700",
        "QPUSH q m GROUP g",
        "QPUSH q m ID i",
        "QPUSH q m PRIORITY 4",
        "QPOP COUNT 2 LEASE 200 FROM q",
        "QPOP NOACK FROM q",
        "QREDRIVE q COUNT 1",
        "QREDRIVE q COUNT 1 TO other",
        "QDEL q STATE DELAYED",
        "QREDRIVE other TO q",
        "QPOP LEASE 100 FROM other q",
    ];
    let mut random = 12_345u64;
    let mut draw = move |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    let mut receipts: Vec<String> = Vec::new();
    let mut now = 0;
    bench.run(0, "QCONFIG SET q MAXDELIVER 3 DEDUP 500 BACKOFF '50 100 2 20'");
    for step in 0..4_000 {
        now += draw(40) as u64;
        let receipt =
            if receipts.is_empty() { "1-0:1".to_owned() } else { receipts[draw(receipts.len())].clone() };
        let line = match draw(20) {
            0..=12 if step % 97 != 0 => lines[draw(lines.len())].to_owned(),
            13 | 14 => format!("QACK q {receipt}"),
            15 => format!("QNACK q IDS 1 {receipt}"),
            16 => format!("QNACK q SILENT IDS 1 {receipt}"),
            17 => format!("QNACK q FATAL IDS 1 {receipt}"),
            18 => format!("QEXTEND q 300 {receipt}"),
            _ => format!("QDEL q IDS 1 {}", receipt.split(':').next().unwrap()),
        };
        let reply = bench.run(now, &line);
        assert!(!reply.starts_with('-'), "{line}: {reply}");
        if line.starts_with("QPOP") {
            receipts.extend(
                reply
                    .split([' ', '[', ']'])
                    .filter(|word| word.contains(':') && word.contains('-'))
                    .map(str::to_owned),
            );
        }
        for queue in ["q", "other"] {
            let info = bench.run(now, &format!("QINFO {queue}"));
            let number = |name: &str| field(&info, name).parse::<u64>().unwrap();
            let there: u64 = ["ready", "delayed", "leased", "dead"].into_iter().map(number).sum();
            let gone: u64 = ["acked", "deleted", "moved"].into_iter().map(number).sum();
            assert_eq!(there + gone, number("pushed"), "{queue} after {line}: {info}");
            assert_eq!(bench.run(now, &format!("QLEN {queue} ALL")), format!(":{there}"));
        }
    }
    for seen in ["acked", "deleted", "moved", "died", "nacked", "expired_leases", "duplicates", "redelivered"]
    {
        assert_ne!(bench.info(now, "q", seen), "0", "{seen}");
    }
}

#[test]
fn who_finds_nothing_waits_and_is_served_in_the_order_of_arrival() {
    let mut bench = Bench::new();
    bench.check(&[
        (0, "QPOP BLOCK 0 FROM a b", "waiting 1"),
        (0, "QPOP BLOCK 500 COUNT 2 WITHMETA FROM b", "waiting 2"),
        (0, "QPOP BLOCK 0 NOACK FROM a", "waiting 3"),
    ]);
    assert_eq!(
        (bench.info(0, "a", "blocked_clients"), bench.info(0, "b", "blocked_clients")),
        ("2".into(), "2".into())
    );
    bench.run(10, "QPUSH b one");
    assert_eq!(bench.ends(), ["1: [[b 6-0:1 one :1]]"]);
    bench.run(10, "QPUSH a two");
    assert_eq!(bench.ends(), ["3: [[a 7-0:1 two :1]]"]);
    assert_eq!(bench.run(10, "QLEN a ALL"), ":0");
    // Time takes the third one, and a message that comes back finds the next.
    bench.expire(500);
    assert_eq!(bench.ends(), ["2: null"]);
    assert_eq!(bench.run(600, "QPOP BLOCK 0 FROM b"), "waiting 4");
    bench.expire(30_009);
    assert_eq!(bench.ends(), Vec::<String>::new());
    bench.expire(30_010);
    assert_eq!(bench.ends(), ["4: [[b 6-0:2 one :2]]"]);
}

#[test]
fn whatever_makes_a_message_available_serves_who_waits() {
    for (before, line, later) in [
        (&["QPUSH q m DELAY 100"][..], "", 100),
        (&["QPUSH q m DELAY 100 ID x"], "QPUSH q m ID x XX DELAY 0", 1),
        (&["QPUSH q m", "QPOP FROM q"], "QNACK q SILENT IDS 1 1-0:1", 1),
        (&["QPUSH q m", "QPOP FROM q"], "QNACK q DELAY 0 IDS 1 1-0:1", 1),
        (&["QPUSH q m", "QPOP FROM q", "QNACK q DELAY 50 IDS 1 1-0:1"], "", 50),
        (&["QPUSH q m", "QPOP FROM q", "QNACK q FATAL IDS 1 1-0:1"], "QREDRIVE q", 1),
        (&["QPUSH d m", "QPOP FROM d", "QNACK d FATAL IDS 1 1-0:1"], "QREDRIVE d TO q", 1),
        (&["QPUSH d m", "QPOP FROM d", "QCONFIG SET d DEADLETTER q"], "QNACK d FATAL IDS 1 1-0:1", 1),
        (&["QPUSH d m", "QPOP LEASE 100 FROM d", "QCONFIG SET d DEADLETTER q MAXDELIVER 1"], "", 100),
        (&["QPUSH q m GROUP g", "QPUSH q n GROUP g", "QPOP FROM q"], "QACK q 1-0:1", 1),
        (&["QPUSH q m GROUP g", "QPUSH q n GROUP g", "QPOP FROM q"], "QDEL q IDS 1 1-0", 1),
        (&["QPUSH q m GROUP g", "QPUSH q n GROUP g", "QPOP FROM q"], "QNACK q FATAL IDS 1 1-0:1", 1),
        (&["QPUSH q m PX 100 DELAY 500 GROUP g", "QPUSH q n GROUP g"], "", 100),
        (&["QPUSH q m", "QCONFIG SET q PAUSE out"], "QCONFIG SET q PAUSE none", 1),
        (&["QCONFIG SET q MAXLEASED 1", "QPUSH q m", "QPUSH q n", "QPOP FROM q"], "QACK q 2-0:1", 1),
        (
            &["QCONFIG SET q MAXLEASED 1", "QPUSH q m", "QPUSH q n", "QPOP FROM q"],
            "QCONFIG SET q MAXLEASED 2",
            1,
        ),
    ] {
        let mut bench = Bench::new();
        before.iter().for_each(|line| drop(bench.run(0, line)));
        assert_eq!(bench.run(0, "QPOP BLOCK 0 FROM q"), "waiting 1", "{before:?}");
        if line.is_empty() {
            bench.expire(later - 1);
            assert_eq!(bench.ends(), Vec::<String>::new(), "{before:?}");
            bench.expire(later);
        } else {
            let reply = bench.run(later, line);
            assert!(!reply.starts_with('-'), "{line}: {reply}");
        }
        let ends = bench.ends();
        assert!(ends.len() == 1 && ends[0].starts_with("1: [[q "), "{before:?} {line}: {ends:?}");
    }
}

#[test]
fn a_transaction_never_waits_and_a_crowd_is_refused() {
    let mut bench = Bench::new();
    bench.in_transaction = true;
    assert_eq!(bench.run(0, "QPOP BLOCK 0 FROM q"), "null-array");
    bench.in_transaction = false;
    for claim in 1..=queues::WAITERS_MAX {
        assert_eq!(bench.run(0, "QPOP BLOCK 0 FROM q"), format!("waiting {claim}"));
    }
    assert_eq!(bench.run(0, "QPOP BLOCK 0 FROM other q"), "-TRYAGAIN too many clients wait for this queue");
    assert_eq!(bench.run(0, "QPOP BLOCK 0 FROM other"), format!("waiting {}", queues::WAITERS_MAX + 1));
}
