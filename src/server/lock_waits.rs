//! What happens to locks, for this node's clients: pushes and channels, and the work that waits leave behind.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use crate::commands::locks::granted_reply;
use crate::commands::queues::popped_reply;
use crate::consensus::claims::Told;
use crate::consensus::claims::WaitOutcome;
use crate::resp::Reply;
use crate::server::Services;
use crate::server::clients::ClientHandle;
use crate::server::losses;
use crate::server::pubsub::LOCK_CHANNEL;
use crate::state::locks::ClaimId;
use crate::state::notices::ClaimEnd;
use crate::state::notices::LockChange;
use crate::state::notices::Notice;
use crate::types::ClientId;

/// How often it is looked for work that nobody announced.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How long a node that stops waits for the ends of its clients' waits, and how often it looks.
const WIND_UP_MAX: Duration = Duration::from_secs(3);
const WIND_UP_LOOK: Duration = Duration::from_millis(5);
/// Changes of locks that may wait to be told.
const NOTICES_MAX: usize = 65_536;

/// Passes on what becomes of locks to this node's clients, from when the group is there.
pub async fn tell_clients(services: Arc<Services>) {
    let (sender, mut notices) = mpsc::channel(NOTICES_MAX);
    services.group.claims().listen(move |notice| {
        // At most once: what nobody keeps up with is not told. Apply does not wait for it.
        let _ = sender.try_send(notice.clone());
    });
    // Some subscribed before.
    services.group.tell_lock_changes(|| !services.pubsub.is_empty());
    // Clients that lost more than they are told of by name, and whether one came since the last look.
    let mut crowded: BTreeMap<ClientId, (Arc<ClientHandle>, bool)> = BTreeMap::new();
    let mut look = tokio::time::interval(losses::QUIET);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            notice = notices.recv() => {
                let Some(notice) = notice else { return };
                if let Some(client) = tell_holder(&services, &notice) {
                    crowded.insert(client.id, (client, true));
                }
                tell_subscribers(&services, &notice).await;
            }
            _ = look.tick(), if !crowded.is_empty() => {
                crowded.retain(|_, (client, is_fresh)| {
                    let stays = std::mem::take(is_fresh);
                    if !stays {
                        client.count_losses();
                    }
                    stays
                });
            }
        }
    }
}

/// Tells whoever lost a lock. Gives the client that is to be told how many it was not told of, once it is quiet.
fn tell_holder(services: &Services, notice: &Notice) -> Option<Arc<ClientHandle>> {
    let Notice::Lock { key, owner, token, change, origin, .. } = notice else { return None };
    let is_loss = matches!(change, LockChange::Expired | LockChange::Killed);
    if !is_loss || !services.group.claims().is_own(origin) {
        return None;
    }
    let client = services.client_of(origin.client).filter(|client| client.wants_losses())?;
    let push = || {
        let token = Reply::Integer(i64::try_from(token.0).unwrap_or(i64::MAX));
        let [lost, key, owner] = [&b"lock-lost"[..], key, &owner.owner].map(Reply::bulk);
        Reply::Push(vec![lost, key, owner, token, Reply::bulk(change.name())])
    };
    client.lose(push).then_some(client)
}

async fn tell_subscribers(services: &Services, notice: &Notice) {
    let Notice::Lock { key, owner, token, change, .. } = notice else { return };
    if services.pubsub.is_empty() {
        return;
    }
    let channel = [LOCK_CHANNEL, key].concat();
    let message =
        [change.name().as_bytes(), b" ", &owner.owner, b" ", token.0.to_string().as_bytes()].concat();
    services.pubsub.publish(&channel, &Bytes::from(message)).await;
}

/// Proposes what waits leave behind: confirms what was handed to those who wait, cancels the waits of clients that are gone,
/// takes back what nobody heard of.
pub async fn look_after(services: Arc<Services>) {
    let claims = Arc::clone(services.group.claims());
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = claims.handed_over() => {
                for batch in claims.confirmations(services.clock.monotonic()) {
                    // What comes of it is told by the entry. What is refused is proposed again.
                    tokio::spawn(services.group.propose(batch));
                }
                continue;
            }
            () = claims.work() => {}
            _ = look.tick() => {}
        }
        for (claim, batch) in claims.on_time(services.clock.monotonic()) {
            let outcome = services.group.propose(batch);
            let claims = Arc::clone(&claims);
            tokio::spawn(async move {
                // What is refused is proposed again.
                if let (Ok(_), Some(claim)) = (outcome.await, claim) {
                    claims.taken_back(claim);
                }
            });
        }
    }
}

/// Waits, when no client is served any more, until the waits of all of them have ended and what nobody heard of went back; no
/// longer than a stop may take. [`look_after`] must go on meanwhile. What is left by then ends as that of a node that died.
pub async fn wind_up(services: &Services) {
    let claims = services.group.claims();
    claims.close();
    let ended = async {
        while !claims.is_empty() {
            tokio::time::sleep(WIND_UP_LOOK).await;
        }
    };
    if tokio::time::timeout(WIND_UP_MAX, ended).await.is_err() {
        let left = claims.len();
        tracing::warn!(
            left,
            "stopped before all waits had ended: the others end them, and take back what was given"
        );
    }
}

/// True when nobody waits under this number any more, as far as this node knows.
pub fn is_over(services: &Services, claim: ClaimId) -> bool {
    let state = services.group.read_applied();
    claim.0 <= state.meta().last_claim && !state.is_waiting(claim)
}

/// What a client that waited is answered.
pub fn reply_of(outcome: &WaitOutcome, is_array: bool) -> Reply {
    match outcome.as_ref().map(|told| &told.end) {
        Some(ClaimEnd::Granted(granted)) => granted_reply(&granted.grants, granted.order.as_deref()),
        Some(ClaimEnd::Delivered(delivered)) => popped_reply(&delivered.messages, delivered.with_meta),
        Some(ClaimEnd::Over) => null(is_array),
        Some(ClaimEnd::Failed(text)) => Reply::error(text.clone()),
        None => Reply::error(
            "INDOUBT This node got a snapshot in the place of the entries that tell how the wait ended. It holds no lock by \
             this wait and no message; what a QPOP with NOACK was given is lost.",
        ),
    }
}

/// What a client is answered that waited for nothing. `is_array`: its command answers with an array.
pub fn null(is_array: bool) -> Reply {
    if is_array { Reply::NullArray } else { Reply::Null }
}

/// A client's wait. However its connection ends, the wait ends with it: a grant that came already is taken back.
pub struct ClientWait<'a> {
    services: &'a Services,
    claim: ClaimId,
    receiver: oneshot::Receiver<WaitOutcome>,
    is_over: bool,
}

impl<'a> ClientWait<'a> {
    /// The client waits for this claim.
    pub fn new(services: &'a Services, claim: ClaimId) -> ClientWait<'a> {
        let receiver = services.group.claims().claim(claim);
        ClientWait { services, claim, receiver, is_over: false }
    }

    /// Waits for the end, which is then the caller's to tell. Cancel safe.
    pub async fn end(&mut self) -> WaitOutcome {
        let outcome = (&mut self.receiver).await.unwrap_or(None);
        self.is_over = true;
        outcome
    }
}

impl Drop for ClientWait<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.services.group.claims().abandon(self.claim, &mut self.receiver);
        }
    }
}

/// A grant is taken back when its client does not get to know of it.
pub struct Undelivered<'a> {
    services: &'a Services,
    grant: Option<(ClaimId, WaitOutcome)>,
}

impl<'a> Undelivered<'a> {
    /// Of this claim, with this end.
    pub fn new(services: &'a Services, claim: ClaimId, outcome: WaitOutcome) -> Undelivered<'a> {
        Undelivered { services, grant: Some((claim, outcome)) }
    }

    /// The client was told.
    pub fn delivered(mut self) {
        self.grant = None;
    }
}

impl Drop for Undelivered<'_> {
    fn drop(&mut self) {
        if let Some((claim, Some(Told { end, .. }))) = self.grant.take() {
            self.services.group.claims().take_back(claim, &end);
        }
    }
}
