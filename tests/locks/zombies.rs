//! Holders that sleep beyond their lease, wake up and write: the server refuses it, whether or not somebody else has
//! the lock by then (etcd#10811, #11456).

use std::thread;
use std::time::Duration;

use holdfast::types::Millis;

use crate::locks::common::check_refused;
use crate::locks::common::token;
use crate::locks::common::waiter;
use crate::locks::common::write_fenced;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::int;
use crate::support::cluster::Cluster;
use crate::support::cluster::PATIENCE;
use crate::support::number_from_env;
use crate::support::wait_for;

const LEASE: &str = "1000";
/// How long a holder sleeps.
const SLEEP: Duration = Duration::from_millis(1_500);
/// Holders that sleep at the same time.
const TOGETHER: u64 = 100;

struct Zombie {
    lock: String,
    register: String,
    owner: String,
    token: i64,
    client: Client,
    /// Waits for the same lock; of every second one there is none.
    heir: Option<Client>,
}

impl Zombie {
    fn begin(cluster: &Cluster, number: u64) -> Zombie {
        let (lock, register) = (format!("lock:{number}"), format!("register:{number}"));
        let owner = format!("zombie:{number}");
        let mut client = cluster.client(number % 3 + 1);
        let token = token(&client.cmd(&["LOCK", &lock, &owner, "PX", LEASE]));
        write_fenced(&mut client, &lock, token, &register, "held");
        let heir = number.is_multiple_of(2).then(|| {
            let mut heir = waiter(cluster, (number + 1) % 3 + 1);
            heir.send(&["LOCK", &lock, "heir", "PX", "60000", "BLOCK", "0"]);
            heir
        });
        Zombie { lock, register, owner, token, client, heir }
    }

    /// Its lease is over, and whoever wanted the lock has it and has written.
    fn lose(&mut self) -> Option<i64> {
        if let Some(heir) = &mut self.heir {
            let next = token(&heir.read());
            assert!(next > self.token, "{}: {next} after {}", self.lock, self.token);
            write_fenced(heir, &self.lock, next, &self.register, "the heir's");
            return Some(next);
        }
        let (client, lock) = (&mut self.client, &self.lock);
        wait_for("the lease to end", PATIENCE, || {
            (client.cmd(&["LOCKS", "INFO", lock]) == Value::Null).then_some(())
        });
        None
    }

    /// Nothing that it does has an effect any more.
    fn check(&mut self, next: Option<i64>) {
        let client = &mut self.client;
        check_refused(client, &self.lock, self.token, &self.register);
        let number = self.token.to_string();
        assert_eq!(client.cmd(&["UNLOCK", &self.lock, &self.owner, "TOKEN", &number]), int(0));
        assert_eq!(client.cmd(&["UNLOCK", &self.lock, &self.owner]), int(0));
        let extended = client.cmd(&["LOCKEXTEND", &self.owner, "5000", "KEYS", "1", &self.lock]);
        assert_eq!(extended.field("extended"), &int(0), "{extended:?}");
        assert_eq!(extended.field("lost").items().len(), 1, "{extended:?}");
        let Some((next, heir)) = next.zip(self.heir.as_mut()) else { return };
        // Whose lock it is has lost nothing by all that.
        write_fenced(heir, &self.lock, next, &self.register, "the heir's, again");
        assert_eq!(heir.cmd(&["UNLOCK", &self.lock, "heir", "TOKEN", &next.to_string()]), int(1));
        // Nobody has it now, and a token of before is still no good.
        check_refused(client, &self.lock, self.token, &self.register);
        check_refused(client, &self.lock, next, &self.register);
    }
}

#[test]
fn a_holder_that_slept_beyond_its_lease_writes_nothing() {
    let count = number_from_env("LOCKS_ZOMBIES", 20);
    let mut cluster = Cluster::start(&[]);
    let (mut checked, mut heirs) = (0, 0);
    while checked < count {
        let numbers = checked..count.min(checked + TOGETHER);
        let mut zombies: Vec<Zombie> = numbers.map(|number| Zombie::begin(&cluster, number)).collect();
        thread::sleep(SLEEP);
        for zombie in &mut zombies {
            let next = zombie.lose();
            zombie.check(next);
            heirs += u64::from(next.is_some());
        }
        checked += zombies.len() as u64;
    }
    println!(
        "{checked} zombies, {heirs} of them with an heir: every write refused with STALETOKEN, every value untouched"
    );
    cluster.wait_until_serving(1);
    cluster.check_digests();
    cluster.check_alive();
}

/// The lease of a holder that sleeps through a change of leader ends too, and its token with it.
#[test]
fn a_holder_that_slept_through_a_change_of_leader_writes_nothing() {
    let mut cluster = Cluster::start(&["--lease-failover-grace", "500"]);
    let killed = cluster.leader();
    let survivor = cluster.others(killed)[0];
    let mut client = cluster.client(survivor);
    let token = token(&client.cmd(&["LOCK", "lock", "zombie", "PX", LEASE]));
    write_fenced(&mut client, "lock", token, "register", "held");
    cluster.kill(killed);
    wait_for("the lease to end", Millis(30_000), || {
        (client.cmd(&["LOCKS", "INFO", "lock"]) == Value::Null).then_some(())
    });
    check_refused(&mut client, "lock", token, "register");
    cluster.start_node(killed);
    check_refused(&mut cluster.client(killed), "lock", token, "register");
    cluster.check_digests();
    cluster.check_alive();
}
