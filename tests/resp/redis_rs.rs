//! redis-rs with its defaults, over RESP2 and RESP3: what an application in Rust would do first.

use redis::Commands;
use redis::Connection;

use crate::support::node::Node;

fn connect(node: &Node, options: &str) -> Connection {
    let client = redis::Client::open(format!("redis://127.0.0.1:{}/{options}", node.port())).unwrap();
    client.get_connection().unwrap()
}

#[test]
fn redis_rs_connects_pipelines_and_runs_transactions() {
    let node = Node::start(&[]);
    for options in ["", "2", "?protocol=resp3"] {
        let mut connection = connect(&node, options);
        let key = format!("key{options}");
        let () = connection.set_ex(&key, 41, 100).unwrap();
        let value: i64 = connection.incr(&key, 1).unwrap();
        assert_eq!(value, 42);
        let missing: Option<String> = connection.get("missing").unwrap();
        assert_eq!(missing, None);

        let mut pipeline = redis::pipe();
        for n in 0..10_000 {
            pipeline.set(format!("{key}:{n}"), n).ignore();
        }
        pipeline.get(format!("{key}:9999"));
        let (last,): (i64,) = pipeline.query(&mut connection).unwrap();
        assert_eq!(last, 9_999);

        let (before, after): (i64, i64) =
            redis::transaction(&mut connection, &[&key], |connection, transaction| {
                let seen: i64 = connection.get(&key)?;
                transaction.get(&key).set(&key, seen + 1).ignore().get(&key).query(connection)
            })
            .unwrap();
        assert_eq!((before, after), (42, 43));

        let token: i64 =
            redis::cmd("LOCK").arg(format!("lock{options}")).arg("me").query(&mut connection).unwrap();
        assert!(token > 0);
        let refused = connection.incr::<_, _, i64>(format!("lock{options}"), 1).unwrap_err();
        assert!(
            refused.to_string().contains("WRONGTYPE") || refused.code() == Some("WRONGTYPE"),
            "{refused}"
        );
    }
}
