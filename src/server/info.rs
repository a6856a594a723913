//! INFO: the node's numbers under the names that Redis's tools and libraries look for, and `raft` for our own.

use std::fmt::Write;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::config::AppendFsync;
use crate::resp::Reply;
use crate::resp::Request;
use crate::server::Services;
use crate::server::clients::ClientHandle;
use crate::server::disk::DiskGate;
use crate::server::raft_command;
use crate::server::session::REDIS_VERSION;
use crate::server::stats;

/// A section: its name, whether INFO shows it unasked, and what writes it.
type Section = (&'static str, bool, fn(&Services, &mut String));

const SECTIONS: [Section; 12] = [
    ("server", true, server),
    ("clients", true, clients),
    ("memory", true, memory),
    ("persistence", true, persistence),
    ("stats", true, statistics),
    ("replication", true, replication),
    ("raft", true, raft),
    ("cpu", true, cpu),
    // Long, so only when it is asked for.
    ("commandstats", false, command_stats),
    ("errorstats", true, error_stats),
    ("cluster", true, cluster),
    ("keyspace", true, keyspace),
];

/// Answers INFO [section ...].
pub fn run(services: &Services, request: &Request) -> Reply {
    let asked: Vec<String> =
        request.args().skip(1).map(|word| String::from_utf8_lossy(word).to_ascii_lowercase()).collect();
    let mut text = String::with_capacity(4096);
    for (name, is_default, write) in SECTIONS {
        if !is_wanted(name, is_default, &asked) {
            continue;
        }
        if !text.is_empty() {
            text.push_str("\r\n");
        }
        let mut title = name.to_owned();
        title[..1].make_ascii_uppercase();
        if name == "cpu" {
            title.make_ascii_uppercase();
        }
        line(&mut text, format_args!("# {title}"));
        write(services, &mut text);
    }
    Reply::Verbatim("txt", text)
}

fn is_wanted(name: &str, is_default: bool, asked: &[String]) -> bool {
    let matches = |word: &String| match word.as_str() {
        "all" | "everything" => true,
        "default" => is_default,
        word => word == name,
    };
    if asked.is_empty() { is_default } else { asked.iter().any(matches) }
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    text.write_fmt(content).expect("a String takes every write");
    text.push_str("\r\n");
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn server(services: &Services, text: &mut String) {
    let uptime = services.clock.monotonic().since(services.started).0 / 1000;
    let config = services.config.get();
    line(text, format_args!("redis_version:{REDIS_VERSION}"));
    line(text, format_args!("redis_git_sha1:00000000"));
    line(text, format_args!("redis_git_dirty:0"));
    line(text, format_args!("redis_build_id:0"));
    line(text, format_args!("redis_mode:standalone"));
    line(text, format_args!("holdfast_version:{}", env!("CARGO_PKG_VERSION")));
    line(text, format_args!("os:{} {}", std::env::consts::OS, std::env::consts::ARCH));
    line(text, format_args!("arch_bits:{}", usize::BITS));
    line(text, format_args!("multiplexing_api:epoll"));
    line(text, format_args!("process_id:{}", std::process::id()));
    line(text, format_args!("run_id:{}", services.run_id));
    line(text, format_args!("node_id:{}", config.node_id));
    line(text, format_args!("tcp_port:{}", config.port));
    line(text, format_args!("http_port:{}", config.http_port));
    line(text, format_args!("server_time_usec:{}", services.clock.wall().0 * 1000));
    line(text, format_args!("uptime_in_seconds:{uptime}"));
    line(text, format_args!("uptime_in_days:{}", uptime / 86_400));
    line(text, format_args!("hz:10"));
    line(text, format_args!("configured_hz:{}", config.shown("hz").unwrap_or_default()));
    let file = services.config.file().map(|path| path.display().to_string()).unwrap_or_default();
    line(text, format_args!("config_file:{file}"));
}

fn clients(services: &Services, text: &mut String) {
    line(text, format_args!("connected_clients:{}", services.clients.len()));
    line(text, format_args!("cluster_connections:0"));
    line(text, format_args!("maxclients:{}", services.config.get().max_clients));
    let all = services.clients.all();
    let most = |value: fn(&ClientHandle) -> usize| all.iter().map(|client| value(client)).max().unwrap_or(0);
    let input = most(|client| client.input_bytes.load(Ordering::Relaxed));
    let output = most(|client| client.output_bytes.load(Ordering::Relaxed));
    line(text, format_args!("client_recent_max_input_buffer:{input}"));
    line(text, format_args!("client_recent_max_output_buffer:{output}"));
    line(text, format_args!("blocked_clients:{}", services.clients.blocked()));
    line(text, format_args!("tracking_clients:0"));
    line(text, format_args!("clients_in_timeout_table:0"));
}

fn memory(services: &Services, text: &mut String) {
    let (resident, total) = (load(&services.used_memory), total_memory_bytes());
    let config = services.config.get();
    let policy = config.shown("maxmemory-policy").unwrap_or_default();
    line(text, format_args!("used_memory:{resident}"));
    line(text, format_args!("used_memory_human:{}", human(resident)));
    line(text, format_args!("used_memory_rss:{resident}"));
    line(text, format_args!("used_memory_rss_human:{}", human(resident)));
    line(text, format_args!("used_memory_peak:{}", peak_bytes().max(resident)));
    line(text, format_args!("used_memory_peak_human:{}", human(peak_bytes().max(resident))));
    line(text, format_args!("total_system_memory:{total}"));
    line(text, format_args!("total_system_memory_human:{}", human(total)));
    line(text, format_args!("used_memory_lua:0"));
    line(text, format_args!("maxmemory:{}", config.max_memory));
    line(text, format_args!("maxmemory_human:{}", human(config.max_memory)));
    line(text, format_args!("maxmemory_policy:{policy}"));
    line(text, format_args!("mem_clients_normal:{}", load(&services.client_memory)));
    line(text, format_args!("mem_fragmentation_ratio:1.00"));
    line(text, format_args!("mem_allocator:mimalloc"));
}

fn persistence(services: &Services, text: &mut String) {
    let status = services.group.status();
    let pending = services.group.read_applied().pending_changes();
    let fsync = match services.config.get().appendfsync {
        AppendFsync::Always => "always",
        AppendFsync::EverySec => "everysec",
        AppendFsync::No => "no",
    };
    line(text, format_args!("loading:{}", u8::from(services.is_loading())));
    line(text, format_args!("async_loading:0"));
    line(text, format_args!("rdb_changes_since_last_save:{}", pending.encoded + pending.listed));
    line(text, format_args!("rdb_bgsave_in_progress:0"));
    line(text, format_args!("rdb_last_save_time:0"));
    line(text, format_args!("rdb_last_bgsave_status:ok"));
    line(text, format_args!("aof_enabled:1"));
    line(text, format_args!("aof_rewrite_in_progress:0"));
    line(text, format_args!("aof_rewrite_scheduled:0"));
    line(text, format_args!("aof_last_bgrewrite_status:ok"));
    line(text, format_args!("aof_last_write_status:ok"));
    line(text, format_args!("aof_current_size:{}", status.log_bytes));
    line(text, format_args!("appendfsync:{fsync}"));
    let disk = &services.disk;
    line(text, format_args!("disk_state:{}", disk.state().name()));
    line(text, format_args!("disk_free_bytes:{}", disk.free()));
    line(text, format_args!("disk_total_bytes:{}", disk.total()));
    line(text, format_args!("disk_ballast_bytes:{}", disk.ballast()));
    let allowed = match services.disk_gate() {
        DiskGate::Open => "all",
        DiskGate::NoGrowth => "no_growth",
        DiskGate::DeletesOnly => "deletions",
    };
    // By the disks of the whole cluster.
    line(text, format_args!("disk_allows:{allowed}"));
}

fn statistics(services: &Services, text: &mut String) {
    let stats = &services.stats;
    let commands = load(&stats.commands);
    line(text, format_args!("total_connections_received:{}", load(&stats.connections)));
    line(text, format_args!("total_commands_processed:{commands}"));
    line(text, format_args!("instantaneous_ops_per_sec:{}", load(&stats.commands_per_second)));
    line(text, format_args!("total_net_input_bytes:{}", load(&stats.input_bytes)));
    line(text, format_args!("total_net_output_bytes:{}", load(&stats.output_bytes)));
    line(text, format_args!("rejected_connections:{}", load(&stats.rejected_connections)));
    line(text, format_args!("sync_full:0"));
    let expired = services.group.read_applied().keys_expired();
    let expired = expired.saturating_sub(load(&stats.keys_expired_before));
    line(text, format_args!("expired_keys:{expired}"));
    line(text, format_args!("evicted_keys:0"));
    line(text, format_args!("evicted_clients:{}", load(&stats.evicted_clients)));
    line(text, format_args!("keyspace_hits:{}", load(&stats.keyspace_hits)));
    line(text, format_args!("keyspace_misses:{}", load(&stats.keyspace_misses)));
    line(text, format_args!("pubsub_channels:0"));
    line(text, format_args!("pubsub_patterns:0"));
    line(text, format_args!("latest_fork_usec:0"));
    line(text, format_args!("total_error_replies:{}", load(&stats.errors)));
    let cut = load(&stats.output_limit_disconnections);
    line(text, format_args!("client_output_buffer_limit_disconnections:{cut}"));
    line(text, format_args!("client_login_timeout_disconnections:{}", load(&stats.login_timeouts)));
    line(text, format_args!("client_request_stall_disconnections:{}", load(&stats.stalled_requests)));
    line(text, format_args!("acl_access_denied_auth:{}", load(&stats.auth_failures)));
    line(text, format_args!("client_panics:{}", load(&stats.panics)));
}

fn replication(services: &Services, text: &mut String) {
    // Any node takes any command, so every node is a master to its clients.
    line(text, format_args!("role:master"));
    line(text, format_args!("connected_slaves:0"));
    line(text, format_args!("master_failover_state:no-failover"));
    line(text, format_args!("master_replid:{}", services.run_id));
    line(text, format_args!("master_repl_offset:{}", services.group.status().applied));
}

/// RAFT INFO's figures, and those of the way into the log.
fn raft(services: &Services, text: &mut String) {
    let status = services.group.status();
    for (name, value) in raft_command::info(services) {
        let name = match name {
            "commit" | "applied" | "flushed" => format!("raft_{name}_index"),
            "cluster_time_ms" => name.to_owned(),
            _ => format!("raft_{name}"),
        };
        match value {
            Reply::Integer(value) => line(text, format_args!("{name}:{value}")),
            Reply::Bulk(value) => line(text, format_args!("{name}:{}", String::from_utf8_lossy(&value))),
            // Not known.
            _ => line(text, format_args!("{name}:")),
        }
    }
    line(text, format_args!("raft_proposals:{}", status.proposals));
    line(text, format_args!("raft_proposals_failed:{}", status.proposals_failed));
    line(text, format_args!("raft_log_writes:{}", status.log_writes));
    line(text, format_args!("raft_log_write_usec:{}", status.log_write_micros));
}

fn cpu(_: &Services, text: &mut String) {
    let (user, system) = cpu_seconds();
    line(text, format_args!("used_cpu_sys:{system:.6}"));
    line(text, format_args!("used_cpu_user:{user:.6}"));
    line(text, format_args!("used_cpu_sys_children:0.000000"));
    line(text, format_args!("used_cpu_user_children:0.000000"));
}

fn command_stats(services: &Services, text: &mut String) {
    for (row, command) in stats::rows().iter().zip(&services.stats.commands_by_row) {
        let (calls, micros) = (load(&command.calls), load(&command.micros));
        let (rejected, failed) = (load(&command.rejected), load(&command.failed));
        if calls + rejected == 0 {
            continue;
        }
        let mean = micros as f64 / calls.max(1) as f64;
        let name = row.name;
        line(
            text,
            format_args!(
                "cmdstat_{name}:calls={calls},usec={micros},usec_per_call={mean:.2},rejected_calls={rejected},\
                 failed_calls={failed}"
            ),
        );
    }
}

fn error_stats(services: &Services, text: &mut String) {
    for (code, count) in services.stats.errors_by_code() {
        line(text, format_args!("errorstat_{code}:count={count}"));
    }
}

/// Redis Cluster's protocol is not spoken, so cluster-aware clients must not try it.
fn cluster(_services: &Services, text: &mut String) {
    line(text, format_args!("cluster_enabled:0"));
}

fn keyspace(services: &Services, text: &mut String) {
    let state = services.group.read_applied();
    for db in 0..state.databases() {
        let Ok(index) = u8::try_from(db) else { break };
        let (keys, expires) = (state.database(index).len(), state.expiring_keys(index));
        if keys > 0 {
            line(text, format_args!("db{db}:keys={keys},expires={expires},avg_ttl=0"));
        }
    }
}

/// A size as Redis writes it for people.
fn human(bytes: u64) -> String {
    let value = bytes as f64;
    match bytes {
        0..1024 => format!("{bytes}B"),
        1024..1_048_576 => format!("{:.2}K", value / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.2}M", value / 1_048_576.0),
        _ => format!("{:.2}G", value / 1_073_741_824.0),
    }
}

/// A file of /proc; empty on systems without it, where the numbers that come from it are 0.
fn proc_file(name: &str) -> String {
    std::fs::read_to_string(name).unwrap_or_default()
}

/// The value of a line such as `VmRSS:  1234 kB`, in bytes.
fn kilobytes(file: &str, name: &str) -> u64 {
    let value = file.lines().find_map(|line| line.strip_prefix(name));
    let number =
        value.and_then(|value| value.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    number.unwrap_or(0) * 1024
}

/// Memory of this process that is in RAM. The size of a page is needed to read /proc/self/statm, and not here.
pub fn resident_bytes() -> u64 {
    kilobytes(&proc_file("/proc/self/status"), "VmRSS:")
}

fn peak_bytes() -> u64 {
    kilobytes(&proc_file("/proc/self/status"), "VmHWM:")
}

fn total_memory_bytes() -> u64 {
    kilobytes(&proc_file("/proc/meminfo"), "MemTotal:")
}

/// Processor time of this process in user and in system mode, in seconds.
fn cpu_seconds() -> (f64, f64) {
    parse_cpu_seconds(&proc_file("/proc/self/stat"))
}

/// Fields 14 and 15 of `/proc/self/stat`, in ticks of 10 ms; the name before them may hold blanks, not a `)` last.
fn parse_cpu_seconds(stat: &str) -> (f64, f64) {
    const TICKS_A_SECOND: f64 = 100.0;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut fields = after_name.split_whitespace().skip(11).map(|field| field.parse::<f64>().unwrap_or(0.0));
    let mut next = || fields.next().unwrap_or(0.0) / TICKS_A_SECOND;
    (next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_shown_when_asked_for() {
        let asked = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert!(is_wanted("server", true, &[]));
        assert!(!is_wanted("commandstats", false, &[]));
        assert!(is_wanted("commandstats", false, &asked(&["all"])));
        assert!(is_wanted("commandstats", false, &asked(&["default", "commandstats"])));
        assert!(!is_wanted("server", true, &asked(&["memory", "clients"])));
        assert!(is_wanted("clients", true, &asked(&["memory", "clients"])));
    }

    #[test]
    fn numbers_of_proc_are_read() {
        assert_eq!(kilobytes("VmHWM:\t  9 kB\nVmRSS:\t   7 kB\n", "VmRSS:"), 7 * 1024);
        assert_eq!(kilobytes("", "VmRSS:"), 0);
        let stat = "17 (hold fast) S 1 17 17 0 -1 4194560 1 2 3 4 250 125 0 0 20 0 9 0 1";
        assert_eq!(parse_cpu_seconds(stat), (2.5, 1.25));
        assert_eq!(parse_cpu_seconds(""), (0.0, 0.0));
    }

    #[test]
    fn sizes_read_as_in_redis() {
        assert_eq!(human(512), "512B");
        assert_eq!(human(1536), "1.50K");
        assert_eq!(human(3 << 20), "3.00M");
        assert_eq!(human(5 << 30), "5.00G");
    }
}
