//! Redis behind sentinels, and in a cluster: several servers are named, and one has the keys.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use redis::{Connection, RedisResult, Value};

use crate::support::private_redis::PrivateRedis;
use crate::support::{Project, wait_until};

/// A port that nobody listens on.
fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A project with a queue, a failure transport and a cache there. Messages with the body `{"fail":true}` fail.
fn project(dsn: &str, cache_options: &str, [queue, failed]: [&str; 2]) -> Project {
    Project::new(&format!(
        "cache: {{dsn: '{dsn}', options: {cache_options}}}\nfailure_transport: failed\ntransports:\n  async: {{dsn: '{dsn}', options: {{stream: '{queue}'}}, \
         retry_strategy: {{max_retries: 1, delay: 50}}}}\n  failed: {{dsn: '{dsn}', options: {{stream: '{failed}'}}}}\n\
         handlers: {{Note: {{exec: [sh, -c, 'body=$(cat); case \"$body\" in *fail*) exit 1;; esac; echo \"$body\" >> handled']}}}}\n"
    ))
}

/// Dispatches a message. Waits until the servers take it.
fn dispatch(project: &Project, body: &str) {
    wait_until("the message is taken", || {
        let run = project.run(&["dispatch", "Note", body, "--transport=async"]);
        assert!(matches!(run.code, Some(0 | 1)), "{run:?}");
        run.code == Some(0)
    });
}

/// Waits until there are these handled messages, each of them once.
fn handled(project: &Project, expected: &[&str]) {
    wait_until("the messages are handled", || project.lines("handled").len() >= expected.len());
    let mut lines = project.lines("handled");
    lines.sort();
    assert_eq!(lines, expected);
}

#[test]
fn with_sentinels_messages_go_to_the_primary_that_has_taken_over() {
    let Some(mut primary) = PrivateRedis::start(&[]) else { return };
    let replica_of = ["--replicaof", "127.0.0.1", &primary.port().to_string()];
    let Some(replica) = PrivateRedis::start(&replica_of) else { return };
    let Some(sentinel) = PrivateRedis::start_sentinel(&primary) else { return };
    wait_until("the sentinel knows the replica", || {
        let mut sentinel = sentinel.connect().unwrap();
        let found: Vec<Value> = redis::cmd("SENTINEL").arg("replicas").arg("main").query(&mut sentinel).unwrap();
        !found.is_empty()
    });
    let dsn =
        format!("redis:?host[127.0.0.1:{}]&host[127.0.0.1:{}]&sentinel_master=main", closed_port(), sentinel.port());
    let project = project(&dsn, "{}", ["orders", "failed"]);
    let _worker = project.start("worker", &["consume", "async", "--sleep=200ms"]);
    dispatch(&project, "\"1\"");
    handled(&project, &["\"1\""]);
    assert!(project.is_running("async"));

    // What the primary has acknowledged to the producer, and its replica has, survives the primary.
    project.run(&["dispatch", "Note", "\"2\"", "--transport=async", "--delay=2s"]).succeeds();
    let copied: u64 = redis::cmd("WAIT").arg(1).arg(30_000).query(&mut primary.connect().unwrap()).unwrap();
    assert_eq!(copied, 1);
    primary.kill();
    // The running worker goes over to the new primary, and so do producers and the cache.
    handled(&project, &["\"1\"", "\"2\""]);
    dispatch(&project, "\"3\"");
    dispatch(&project, "\"fail\"");
    handled(&project, &["\"1\"", "\"2\"", "\"3\""]);
    wait_until("the failed message is on the failure transport", || project.pending("failed") == 1);
    wait_until("its heartbeats are in the cache", || project.is_running("async"));
    let role: Vec<Value> = redis::cmd("ROLE").query(&mut replica.connect().unwrap()).unwrap();
    assert_eq!(role[0], Value::BulkString(b"master".to_vec()));
}

#[test]
fn an_unknown_primary_and_silent_sentinels_are_reported_by_name() {
    let Some(primary) = PrivateRedis::start(&[]) else { return };
    let Some(sentinel) = PrivateRedis::start_sentinel(&primary) else { return };
    let closed = closed_port();
    let dsn = format!(
        "redis:?host[127.0.0.1:{closed}]&host[127.0.0.1:{}]&sentinel_master=other&auth=hunter2",
        sentinel.port()
    );
    let project = project(&dsn, "{}", ["orders", "failed"]);
    let run = project.run(&["setup", "async"]).exits(1);
    for expected in [
        "other@127.0.0.1:",
        "no sentinel knows the primary",
        &format!("127.0.0.1:{closed}: "),
        "it has no primary of this name; see `sentinel_master`",
    ] {
        assert!(run.stderr.contains(expected), "{expected}: {run:?}");
    }
    assert!(!run.stderr.contains("hunter2"), "{run:?}");
}

/// Three nodes with a third of the slots each.
struct Cluster {
    nodes: Vec<PrivateRedis>,
}

const SLOTS: u64 = 16384;

impl Cluster {
    fn start() -> Option<Self> {
        let mut nodes = Vec::new();
        let mut buses = Vec::new();
        for _ in 0..3 {
            let bus = closed_port().to_string();
            nodes.push(PrivateRedis::start(&[
                "--cluster-enabled",
                "yes",
                "--cluster-node-timeout",
                "2000",
                "--cluster-port",
                &bus,
            ])?);
            buses.push(bus);
        }
        let cluster = Self { nodes };
        for n in 0..3 {
            let range = [SLOTS * n / 3, SLOTS * (n + 1) / 3 - 1].map(|slot| slot.to_string());
            cluster.on(n as usize, &["ADDSLOTSRANGE", &range[0], &range[1]]).unwrap();
            let met = cluster.nodes[n as usize].port().to_string();
            cluster.on(0, &["MEET", "127.0.0.1", &met, &buses[n as usize]]).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        while !(0..3).all(|n| cluster.is_complete(n)) {
            assert!(Instant::now() < deadline, "the cluster does not come together");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(cluster)
    }

    fn connect(&self, node: usize) -> Connection {
        self.nodes[node].connect().unwrap()
    }

    fn on(&self, node: usize, command: &[&str]) -> RedisResult<Value> {
        redis::cmd("CLUSTER").arg(command).query(&mut self.connect(node))
    }

    fn is_complete(&self, node: usize) -> bool {
        let info: String = redis::cmd("CLUSTER").arg("INFO").query(&mut self.connect(node)).unwrap();
        let slots: Vec<Value> = redis::cmd("CLUSTER").arg("SLOTS").query(&mut self.connect(node)).unwrap();
        info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3") && slots.len() >= 3
    }

    /// The number of the node that has this key, and the key's slot.
    fn owner(&self, key: &str) -> (usize, String) {
        let slot: u64 = redis::cmd("CLUSTER").arg("KEYSLOT").arg(key).query(&mut self.connect(0)).unwrap();
        ((0..3).find(|n| slot < SLOTS * (n + 1) / 3).unwrap() as usize, slot.to_string())
    }

    fn id(&self, node: usize) -> String {
        redis::cmd("CLUSTER").arg("MYID").query(&mut self.connect(node)).unwrap()
    }
}

#[test]
fn in_a_cluster_a_queue_is_on_one_node_and_is_found_after_it_has_moved() {
    let Some(cluster) = Cluster::start() else { return };
    let dsn = format!("redis://127.0.0.1:{},redis://127.0.0.1:{}", closed_port(), cluster.nodes[0].port());
    // The failure transport is on another node, and the cache on a third or one of them.
    let [queue, failed] = ["{orders}", "{users}"];
    assert_ne!(cluster.owner(queue).0, cluster.owner(failed).0);
    let project = project(&dsn, "{prefix: '{minutely}:'}", [queue, failed]);
    project.run(&["setup"]).succeeds();
    dispatch(&project, "\"1\"");
    project.run(&["dispatch", "Note", "\"2\"", "--transport=async", "--delay=200ms"]).succeeds();
    dispatch(&project, "\"fail\"");
    let _worker = project.start("worker", &["consume", "async", "--sleep=100ms"]);
    handled(&project, &["\"1\"", "\"2\""]);
    wait_until("the failed message is on the failure transport", || project.pending("failed") == 1);
    assert!(project.is_running("async"));
    let (from, slot) = cluster.owner(queue);
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut cluster.connect(from)).unwrap();
    assert!(keys.iter().any(|key| key == queue), "{keys:?}");

    // The slot moves, with the stream, to another node: the running worker and new processes follow.
    let to = (from + 1) % 3;
    let (from_id, to_id) = (cluster.id(from), cluster.id(to));
    wait_until("everything is acknowledged", || project.pending("async") == 0);
    cluster.on(to, &["SETSLOT", &slot, "IMPORTING", &from_id]).unwrap();
    cluster.on(from, &["SETSLOT", &slot, "MIGRATING", &to_id]).unwrap();
    let in_slot: Vec<String> =
        redis::cmd("CLUSTER").arg("GETKEYSINSLOT").arg(&slot).arg(100).query(&mut cluster.connect(from)).unwrap();
    for key in in_slot {
        let port = cluster.nodes[to].port();
        let mut migrate = redis::cmd("MIGRATE");
        migrate.arg("127.0.0.1").arg(port).arg(key).arg(0).arg(10_000).exec(&mut cluster.connect(from)).unwrap();
    }
    for node in [to, from, (from + 2) % 3] {
        cluster.on(node, &["SETSLOT", &slot, "NODE", &to_id]).unwrap();
    }
    dispatch(&project, "\"3\"");
    handled(&project, &["\"1\"", "\"2\"", "\"3\""]);
    assert_eq!(project.pending("failed"), 1);
}
