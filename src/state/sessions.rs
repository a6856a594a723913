//! Every write exactly once: what each node has had executed, and what came of it (DESIGN.md D6).
//!
//! A node numbers its batches 1, 2, 3 … within an epoch of its own (a life of its process) and sends again what
//! was not answered. Apply asks here whether a batch is to be executed. Its replies are remembered until the node
//! says that it has them, so that a repetition gets the same answer.
//!
//! ```text
//! state              batch (epoch, seq)              next state          admission
//! none               any epoch, seq = 1              open(epoch, 1)      Execute
//! none               any epoch, seq other than 1     none                Gap
//! open(e, last)      e, seq = last + 1               open(e, last + 1)   Execute
//! open(e, last)      e, seq up to last               unchanged           Repeated, or Replayed without replies
//! open(e, last)      e, seq beyond last + 1          unchanged           Gap
//! open(e, last)      newer epoch, seq = 1            open(newer, 1)      Execute; nothing of e executes again
//! open(e, last)      newer epoch, seq other than 1   unchanged           Gap
//! open(e, last)      older epoch                     unchanged           Ended
//! ```
//! In the three rows of epoch `e` the batch's `ack` comes first: remembered replies up to it are forgotten.
//!
//! A session stays for ever: without it, a late copy of its first batch would execute again. It is a few bytes
//! per node that ever was a member; only its replies take room, and those are bounded.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use bytes::Bytes;

use crate::resp::Reply;
use crate::resp::reply_codec::encode_replies;
use crate::types::NodeId;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bytes;
use crate::types::codec::put_varint;

/// Encoded replies of one batch up to this many bytes are remembered; of larger ones only that they were.
pub const REPLY_BYTES_MAX: usize = 64 << 10;
/// A session remembers about this many bytes; the oldest replies go first. An origin that acknowledges what it has
/// stays far below.
pub const SESSION_BYTES_MAX: usize = 32 << 20;

/// Replies whose rendered size may be above this are not even encoded, to be thrown away.
pub const HINT_BYTES_MAX: usize = 16 * REPLY_BYTES_MAX;
/// This many OKs are remembered as their number.
const OKS_MAX: usize = 4096;
/// What remembering a batch takes besides the bytes of its replies.
const OVERHEAD: usize = 80;

const TOO_LARGE: u8 = 0;
const OKS: u8 = 1;
const REPLIES: u8 = 2;

/// What is to be done with a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// The next of its session: execute it, then remember its replies.
    Execute,
    /// It was executed before, with these replies (as `resp::reply_codec` encodes them).
    Repeated(Bytes),
    /// It was executed before; its replies are forgotten, or were too large to keep.
    Replayed,
    /// Batches before it are missing. Not executed; it may be sent again behind them.
    Gap,
    /// It is of an epoch that is over or that never began. Not executed now or later; it may have been before.
    Ended,
}

/// What is remembered of a batch that was executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remembered {
    /// Its replies, as `resp::reply_codec` encodes them.
    Replies(Bytes),
    /// Its replies were this many OKs, which is most of what there is.
    Oks(u32),
    /// Only that it was executed.
    TooLarge,
}

impl Remembered {
    /// What to remember of these replies, which take `bytes` by [`Reply::size_hint`]; they may be left out when that is
    /// above [`HINT_BYTES_MAX`]. `scratch` is room to encode them in; its content is lost.
    #[must_use]
    pub fn of(replies: &[Reply], bytes: usize, scratch: &mut Vec<u8>) -> Remembered {
        if bytes > HINT_BYTES_MAX {
            return Remembered::TooLarge;
        }
        if replies.len() <= OKS_MAX && replies.iter().all(|reply| matches!(reply, Reply::Ok)) {
            return Remembered::Oks(replies.len() as u32);
        }
        scratch.clear();
        encode_replies(replies, scratch);
        if scratch.len() > REPLY_BYTES_MAX {
            return Remembered::TooLarge;
        }
        Remembered::Replies(Bytes::copy_from_slice(scratch))
    }

    fn bytes(&self) -> usize {
        match self {
            Remembered::Replies(replies) => replies.len() + OVERHEAD,
            Remembered::Oks(_) | Remembered::TooLarge => OVERHEAD,
        }
    }

    fn admission(&self) -> Admission {
        match self {
            Remembered::Replies(replies) => Admission::Repeated(replies.clone()),
            Remembered::Oks(count) => {
                let mut out = Vec::new();
                encode_replies(&vec![Reply::Ok; *count as usize], &mut out);
                Admission::Repeated(Bytes::from(out))
            }
            Remembered::TooLarge => Admission::Replayed,
        }
    }
}

/// What one node has had executed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Session {
    epoch: u64,
    last: u64,
    /// By sequence number, rising, each up to `last`.
    replies: VecDeque<(u64, Remembered)>,
    /// What `replies` take.
    bytes: usize,
}

impl Session {
    fn begin(epoch: u64) -> Session {
        Session { epoch, last: 1, ..Session::default() }
    }

    /// The session whose batches are executed, named after its node's life (`machine::entry::life_of`).
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The last sequence number that was executed (from 1).
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Of how many batches the replies are remembered.
    #[must_use]
    pub fn remembered(&self) -> usize {
        self.replies.len()
    }

    /// Bytes of memory the remembered replies take, nearly.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.bytes
    }

    fn admit(&mut self, seq: u64, ack: u64) -> Admission {
        self.forget_through(ack);
        if seq <= self.last {
            let found = self.replies.binary_search_by_key(&seq, |(seq, _)| *seq);
            return found.map_or(Admission::Replayed, |at| self.replies[at].1.admission());
        }
        if seq - 1 != self.last {
            return Admission::Gap;
        }
        self.last = seq;
        Admission::Execute
    }

    /// An ack beyond what was executed means all that was.
    fn forget_through(&mut self, ack: u64) {
        while self.replies.front().is_some_and(|(seq, _)| *seq <= ack) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, oldest)) = self.replies.pop_front() {
            self.bytes -= oldest.bytes();
        }
    }

    fn remember(&mut self, seq: u64, replies: Remembered) {
        self.bytes += replies.bytes();
        self.replies.push_back((seq, replies));
        while self.bytes > SESSION_BYTES_MAX {
            self.forget_oldest();
        }
    }

    /// Appends the session as its row keeps it.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.epoch);
        put_varint(out, self.last);
        put_varint(out, self.replies.len() as u64);
        for (seq, replies) in &self.replies {
            put_varint(out, *seq);
            match replies {
                Remembered::TooLarge => out.push(TOO_LARGE),
                Remembered::Oks(count) => {
                    out.push(OKS);
                    put_varint(out, u64::from(*count));
                }
                Remembered::Replies(replies) => {
                    out.push(REPLIES);
                    put_bytes(out, replies);
                }
            }
        }
    }

    /// Reads what [`Session::encode`] wrote.
    pub(super) fn decode(value: &[u8]) -> Result<Session, CodecError> {
        let mut reader = Reader::new(value);
        let mut session = Session { epoch: reader.varint()?, last: reader.varint()?, ..Session::default() };
        let mut before = 0;
        for _ in 0..reader.varint()? {
            let seq = reader.varint()?;
            if seq <= before || seq > session.last {
                return Err(CodecError("the replies of a session are out of order"));
            }
            before = seq;
            let replies = match reader.u8()? {
                TOO_LARGE => Remembered::TooLarge,
                OKS => Remembered::Oks(reader.varint32()?),
                REPLIES => Remembered::Replies(Bytes::copy_from_slice(reader.bytes()?)),
                _ => return Err(CodecError("a remembered reply of an unknown kind")),
            };
            session.remember(seq, replies);
        }
        if !reader.is_empty() {
            return Err(CodecError("a session with a tail"));
        }
        Ok(session)
    }
}

/// The sessions of all nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sessions {
    by_node: BTreeMap<NodeId, Session>,
}

impl Sessions {
    /// Decides on one batch of `node`. `ack` says that the node has the replies of all batches up to and including
    /// it. After [`Admission::Execute`] the batch counts as executed, and [`Sessions::remember`] must follow.
    pub fn admit(&mut self, node: NodeId, epoch: u64, seq: u64, ack: u64) -> Admission {
        match self.by_node.get_mut(&node) {
            Some(session) if session.epoch == epoch => session.admit(seq, ack),
            Some(session) if session.epoch < epoch && seq == 1 => {
                *session = Session::begin(epoch);
                Admission::Execute
            }
            None if seq == 1 => {
                self.by_node.insert(node, Session::begin(epoch));
                Admission::Execute
            }
            Some(session) if session.epoch > epoch => Admission::Ended,
            // Its beginning is still to come.
            Some(_) | None => Admission::Gap,
        }
    }

    /// Keeps the replies of the batch that was executed just now.
    ///
    /// # Panics
    ///
    /// When it is not the batch that was admitted last: replies would go to another one's repetition.
    pub fn remember(&mut self, node: NodeId, seq: u64, replies: Remembered) {
        let session = self.by_node.get_mut(&node).filter(|session| session.last == seq);
        session.expect("the batch was admitted just now").remember(seq, replies);
    }

    /// The node left the cluster and will not ask again. What it had executed stays known.
    pub(super) fn forget_replies(&mut self, node: NodeId) {
        if let Some(session) = self.by_node.get_mut(&node) {
            session.forget_through(u64::MAX);
        }
    }

    pub(super) fn insert(&mut self, node: NodeId, session: Session) {
        self.by_node.insert(node, session);
    }

    /// The session of a node; `None` when it never had a batch executed.
    #[must_use]
    pub fn get(&self, node: NodeId) -> Option<&Session> {
        self.by_node.get(&node)
    }

    /// Every session, by node.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Session)> {
        self.by_node.iter().map(|(node, session)| (*node, session))
    }

    /// How many nodes have a session.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_node.len()
    }

    /// True when no node has a session.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_node.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::State;
    use crate::state::test_support::TestStore;
    use crate::types::ClusterTime;
    use crate::types::LogIndex;
    use crate::types::Term;
    use crate::types::WallMillis;

    const NODE: NodeId = NodeId(2);

    fn replies(text: &str) -> Remembered {
        Remembered::Replies(Bytes::copy_from_slice(text.as_bytes()))
    }

    /// Node 2 in epoch 5 with batches 1 to `last` executed; the replies of `n` are "n".
    fn open(last: u64) -> Sessions {
        let mut sessions = Sessions::default();
        for seq in 1..=last {
            assert_eq!(sessions.admit(NODE, 5, seq, 0), Admission::Execute);
            sessions.remember(NODE, seq, replies(&seq.to_string()));
        }
        sessions
    }

    fn repeated(text: &'static str) -> Admission {
        Admission::Repeated(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn batches_are_admitted_as_the_table_says() {
        for (last, epoch, seq, ack, admission) in [
            (0, 5, 1, 0, Admission::Execute),
            (0, 5, 1, 9, Admission::Execute),
            (0, 5, 0, 0, Admission::Gap),
            (0, 5, 2, 0, Admission::Gap),
            (3, 5, 4, 0, Admission::Execute),
            (3, 5, 3, 0, repeated("3")),
            (3, 5, 1, 0, repeated("1")),
            (3, 5, 2, 1, repeated("2")),
            (3, 5, 2, 2, Admission::Replayed),
            (3, 5, 3, u64::MAX, Admission::Replayed),
            (3, 5, 0, 0, Admission::Replayed),
            (3, 5, 5, 0, Admission::Gap),
            (3, 5, u64::MAX, 0, Admission::Gap),
            (3, 6, 1, 0, Admission::Execute),
            (3, 6, 4, 0, Admission::Gap),
            (3, 6, 2, 0, Admission::Gap),
            (3, 4, 1, 0, Admission::Ended),
            (3, 4, 4, 0, Admission::Ended),
        ] {
            let mut sessions = open(last);
            assert_eq!(
                sessions.admit(NODE, epoch, seq, ack),
                admission,
                "({epoch}, {seq}) with ack {ack} after {last}"
            );
        }
    }

    #[test]
    fn a_batch_is_not_executed_again_whatever_comes_between() {
        let mut sessions = open(2);
        assert_eq!(sessions.admit(NODE, 6, 1, 0), Admission::Execute);
        sessions.remember(NODE, 1, replies("new"));
        assert_eq!(sessions.admit(NODE, 5, 1, 0), Admission::Ended);
        assert_eq!(sessions.admit(NODE, 5, 3, 0), Admission::Ended);
        assert_eq!(sessions.admit(NODE, 6, 1, 0), repeated("new"));
        assert_eq!(
            sessions.admit(NodeId(3), 5, 1, 0),
            Admission::Execute,
            "other nodes count for themselves"
        );
    }

    #[test]
    fn an_ack_beyond_the_last_batch_forgets_nothing_of_those_to_come() {
        let mut sessions = open(2);
        assert_eq!(sessions.admit(NODE, 5, 3, 100), Admission::Execute);
        sessions.remember(NODE, 3, replies("3"));
        assert_eq!(sessions.get(NODE).map(Session::remembered), Some(1));
        assert_eq!(sessions.admit(NODE, 5, 3, 2), repeated("3"));
    }

    #[test]
    fn an_ack_counts_even_when_its_batch_is_not_executed() {
        let mut sessions = open(3);
        assert_eq!(sessions.admit(NODE, 5, 9, 2), Admission::Gap);
        assert_eq!(sessions.get(NODE).map(Session::remembered), Some(1));
        assert_eq!(sessions.admit(NODE, 4, 1, 3), Admission::Ended, "but not one of another epoch");
        assert_eq!(sessions.get(NODE).map(Session::remembered), Some(1));
    }

    #[test]
    fn oks_are_remembered_as_their_number_and_large_replies_as_a_marker() {
        let mut scratch = vec![7; 9];
        let mut of = |replies: &[Reply]| {
            Remembered::of(replies, replies.iter().map(Reply::size_hint).sum(), &mut scratch)
        };
        assert_eq!(of(&[]), Remembered::Oks(0));
        assert_eq!(of(&[Reply::Ok, Reply::Ok]), Remembered::Oks(2));
        let mixed = [Reply::Ok, Reply::Integer(3)];
        let mut encoded = Vec::new();
        encode_replies(&mixed, &mut encoded);
        assert_eq!(of(&mixed), Remembered::Replies(Bytes::from(encoded)));
        let bulk = |bytes: usize| [Reply::bulk(vec![b'x'; bytes])];
        for (bytes, is_kept) in [
            (REPLY_BYTES_MAX - 64, true),
            (REPLY_BYTES_MAX, false),
            (HINT_BYTES_MAX, false),
            (2 * HINT_BYTES_MAX, false),
        ] {
            let kept = of(&bulk(bytes)) != Remembered::TooLarge;
            assert_eq!(kept, is_kept, "{bytes} bytes");
        }
        let mut sessions = Sessions::default();
        for (seq, replies) in (1..).zip([Remembered::Oks(2), Remembered::TooLarge]) {
            assert_eq!(sessions.admit(NODE, 1, seq, 0), Admission::Execute);
            sessions.remember(NODE, seq, replies);
        }
        let mut oks = Vec::new();
        encode_replies(&[Reply::Ok, Reply::Ok], &mut oks);
        assert_eq!(sessions.admit(NODE, 1, 1, 0), Admission::Repeated(Bytes::from(oks)));
        assert_eq!(sessions.admit(NODE, 1, 2, 0), Admission::Replayed);
    }

    #[test]
    fn a_node_that_never_acknowledges_does_not_fill_the_memory() {
        let mut sessions = Sessions::default();
        let large = Bytes::from(vec![b'x'; REPLY_BYTES_MAX]);
        let many = (2 * SESSION_BYTES_MAX / REPLY_BYTES_MAX) as u64;
        for seq in 1..=many {
            assert_eq!(sessions.admit(NODE, 1, seq, 0), Admission::Execute);
            sessions.remember(NODE, seq, Remembered::Replies(large.clone()));
        }
        let session = sessions.get(NODE).unwrap();
        assert!(session.memory_bytes() <= SESSION_BYTES_MAX);
        assert!(session.remembered() as u64 > many / 3);
        assert_eq!(sessions.admit(NODE, 1, 1, 0), Admission::Replayed);
        assert_eq!(sessions.admit(NODE, 1, many, 0), Admission::Repeated(large));
    }

    #[test]
    fn sessions_are_rows_that_survive_a_reload() {
        let store = TestStore::new();
        let mut state = State::new(16);
        let all = [replies("text"), Remembered::Oks(3), Remembered::TooLarge, replies("")];
        for (index, remembered) in (1..).zip(&all) {
            state.begin_entry(LogIndex(index), Term(1), ClusterTime(0), WallMillis(0));
            for node in [NodeId(1), NodeId(u64::MAX)] {
                assert_eq!(state.admit_batch(node, 1 << 32, index, 0), Admission::Execute);
                state.remember_replies(node, index, remembered.clone());
            }
            assert_eq!(state.pending_changes().listed, 2, "a row per node, however often it changes");
            if index % 2 == 0 {
                store.reopen(&mut state);
                assert_eq!(state.pending_changes().listed, 0);
            }
        }
        assert_eq!(state.sessions().len(), 2);
        assert_eq!(state.admit_batch(NodeId(1), 1 << 32, 1, 0), repeated("text"));
        assert_eq!(state.admit_batch(NodeId(1), 1 << 32, 9, 1), Admission::Gap);
        assert_eq!(state.pending_changes().listed, 1, "the ack of a batch with a gap before it");
        store.reopen(&mut state);
        assert_eq!(state.admit_batch(NodeId(1), 1 << 32, 1, 0), Admission::Replayed);
        assert_eq!(state.admit_batch(NodeId(9), 1, 2, 0), Admission::Gap);
        assert!(state.sessions().get(NodeId(9)).is_none());
    }

    #[test]
    fn what_is_remembered_is_part_of_the_digest() {
        let state = |remembered: Option<Remembered>| {
            let mut state = State::new(16);
            state.begin_entry(LogIndex(1), Term(1), ClusterTime(0), WallMillis(0));
            if let Some(remembered) = remembered {
                assert_eq!(state.admit_batch(NODE, 1, 1, 0), Admission::Execute);
                state.remember_replies(NODE, 1, remembered);
            }
            state.digest()
        };
        let digests = [
            state(None),
            state(Some(Remembered::Oks(1))),
            state(Some(Remembered::TooLarge)),
            state(Some(replies("a"))),
        ];
        for (at, digest) in digests.iter().enumerate() {
            assert!(!digests[..at].contains(digest), "number {at}");
        }
    }

    #[test]
    fn a_session_row_that_is_cut_or_out_of_order_is_refused() {
        let mut row = Vec::new();
        open(3).get(NODE).unwrap().encode(&mut row);
        assert_eq!(Session::decode(&row).as_ref(), Ok(open(3).get(NODE).unwrap()));
        for length in 0..row.len() {
            assert!(Session::decode(&row[..length]).is_err(), "cut at {length}");
        }
        row.push(0);
        assert!(Session::decode(&row).is_err());
        for seqs in [[2, 2], [2, 1], [0, 1], [1, 4]] {
            let mut row = vec![5, 3, 2];
            seqs.iter().for_each(|seq| row.extend_from_slice(&[*seq, OKS, 1]));
            assert!(Session::decode(&row).is_err(), "{seqs:?}");
        }
    }
}
