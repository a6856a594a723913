//! A node's part in a cluster of several: the internal port, the formation, and what the others are told.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::TcpListener;
use std::sync::Arc;

use anyhow::Context;

use crate::clock::Clock;
use crate::config::Config;
use crate::config::SharedConfig;
use crate::consensus::formation::Formation;
use crate::consensus::formation::Record;
use crate::consensus::formation::Standing;
use crate::consensus::raft::hub::Hub;
use crate::consensus::raft::hub::META_FORMATION;
use crate::consensus::raft::replica::META_BOOT;
use crate::consensus::raft::replica::META_REPLICA;
use crate::consensus::raft::replica::PeerParts;
use crate::consensus::raft::requests::NodeStatus;
use crate::peer::Handler;
use crate::peer::Network;
use crate::peer::NetworkOptions;
use crate::peer::PeerAddress;
use crate::state::NodeAddress;
use crate::storage::LogBatch;
use crate::storage::LogStore;
use crate::storage::StorageError;
use crate::storage::disk::DiskGauge;
use crate::storage::rejoin;
use crate::types::GroupId;
use crate::types::LogIndex;
use crate::types::NodeId;

/// The group that carries what belongs to the node.
const GROUP: GroupId = GroupId(0);

/// Refuses a data directory whose cluster is not the one that the configuration speaks of.
///
/// # Errors
/// One line that says what to do.
pub fn check(config: &Config, log: &LogStore) -> anyhow::Result<()> {
    let meta = log.load(GROUP, LogIndex(u64::MAX))?.meta;
    let (is_member, is_used) = (meta.contains_key(META_FORMATION), meta.contains_key(META_REPLICA));
    let dir = config.dir.display();
    if config.has_peers() && is_used && !is_member {
        anyhow::bail!(
            "data directory {dir} holds a cluster of one, and this configuration names several nodes: remove the \
             cluster-node lines, or choose an empty dir"
        );
    }
    if !config.has_peers() && is_member {
        anyhow::bail!(
            "data directory {dir} belongs to a cluster of several nodes: give the cluster-node lines of all of them, or \
             choose another dir"
        );
    }
    Ok(())
}

/// Opens the internal port to the others and waits until the cluster has formed.
///
/// # Errors
/// When the boot records cannot be read or written, or a thread cannot be started.
pub fn join(
    config: &SharedConfig,
    log: &Arc<LogStore>,
    clock: &Arc<dyn Clock>,
    listeners: Vec<TcpListener>,
    disk: &Arc<DiskGauge>,
) -> anyhow::Result<PeerParts> {
    let config = config.get();
    let contents = log.load(GROUP, LogIndex(u64::MAX))?;
    let boot = next_boot(log, contents.meta.get(META_BOOT))?;
    let record = match contents.meta.get(META_FORMATION) {
        Some(bytes) => {
            Some(Record::decode(bytes).context("the record of the cluster's formation is damaged")?)
        }
        None => None,
    };
    let is_formed = |record: &&Record| matches!(record.standing, Standing::Formed(_));
    let replica = record.as_ref().filter(is_formed).map(|record| record.replica);
    let listed: Vec<NodeId> = config.cluster_nodes.iter().map(|node| node.id).collect();
    let formation = Formation::new(record, config.node_id, &listed, random());
    // What was given up had belonged to a cluster: a new one would begin without what that one acknowledged.
    let formation = if rejoin::read(&config.dir)?.is_some() { formation.only_to_rejoin() } else { formation };
    let peers = config.cluster_nodes.iter().map(|node| PeerAddress {
        node: node.id,
        host: node.host.clone(),
        port: node.peer_port,
    });
    let options = NetworkOptions {
        node: config.node_id,
        boot,
        peers: peers.collect(),
        heartbeat_interval: config.heartbeat_interval,
        election_timeout: config.election_timeout,
        protected: config.peer_protected_mode,
        cluster: formation.cluster().unwrap_or(0),
        replicas: replica.map(|replica| (GROUP, replica)).into_iter().collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let network =
        Network::start(options, listeners, Arc::clone(clock)).context("cannot start the internal port")?;
    let hub = Hub::new(config.node_id, network.clone(), Arc::clone(log), Arc::clone(clock), formation);
    network.set_handler(Arc::clone(&hub) as Arc<dyn Handler>);
    tracing::info!("The internal port is {}; waiting for the cluster", config.peer_port);
    let own = config.cluster_nodes.iter().find(|node| node.id == config.node_id);
    if let Some(own) = own.filter(|own| own.peer_port != config.peer_port) {
        tracing::warn!(
            "other nodes dial port {} of this node, and it listens on peer-port {}: right only if something maps the one \
             to the other",
            own.peer_port,
            config.peer_port
        );
    }
    let address = NodeAddress {
        node: config.node_id,
        host: own.map(|node| node.host.clone()).unwrap_or_default(),
        port: own.map_or(config.peer_port, |node| node.peer_port),
    };
    let formed = hub.wait_until_formed(&address, random() as u64);
    let (node, port, http_port) = (config.node_id, config.port, config.http_port);
    let gauge = Arc::clone(disk);
    Ok(PeerParts {
        node,
        hub,
        replica: formed.replica,
        members: formed.members,
        boot,
        snapshot_counters: Arc::default(),
        disk: Arc::clone(disk),
        describe: Box::new(move |group| NodeStatus {
            node,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            port,
            http_port,
            disk_free: gauge.free(),
            groups: vec![group],
            disk: gauge.state(),
            disk_room: gauge.takes(),
        }),
    })
}

/// Counts this start, durably: what is named after it must never be named so again.
fn next_boot(log: &LogStore, known: Option<&Vec<u8>>) -> Result<u64, StorageError> {
    let known = known.and_then(|bytes| bytes.as_slice().try_into().ok()).map_or(0, u64::from_be_bytes);
    let mut batch = LogBatch::new();
    batch.group_meta(GROUP, META_BOOT, &(known + 1).to_be_bytes());
    log.write(batch, true)?;
    Ok(known + 1)
}

/// A number that nobody drew before: the standard library's hasher is seeded by the operating system.
fn random() -> u128 {
    let hasher = RandomState::new();
    u128::from(hasher.hash_one(1)) << 64 | u128::from(hasher.hash_one(2))
}
