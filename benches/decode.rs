//! What it costs to decode requests, and what it would cost with the redis-protocol crate's ranges instead of the
//! reader's own.
//!
//! Every measurement includes the copy of the bytes into the read buffer, as the socket's read makes one.

#![expect(clippy::unwrap_used, reason = "the input is known to be well-formed")]

use std::hint::black_box;

use bytes::BytesMut;
use criterion::Criterion;
use criterion::Throughput;
use criterion::criterion_group;
use criterion::criterion_main;
use holdfast::resp::Limits;
use holdfast::resp::Request;
use holdfast::resp::RequestReader;
use redis_protocol::resp2::decode::decode_range;
use redis_protocol::resp2::types::RangeFrame;
use smallvec::SmallVec;

fn encoded(args: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
    out
}

fn inputs() -> Vec<(&'static str, Vec<u8>)> {
    let value = [b'x'; 64];
    let get = encoded(&[b"GET", b"key:000000012345"]);
    let pairs: Vec<Vec<u8>> = (0..2000).map(|n| format!("key:{n:012}").into_bytes()).collect();
    let mset: Vec<&[u8]> = [&b"MSET"[..]].into_iter().chain(pairs.iter().map(Vec::as_slice)).collect();
    vec![
        ("ping inline", b"PING\r\n".to_vec()),
        ("get", get.clone()),
        ("set of 64 bytes", encoded(&[b"SET", b"key:000000012345", &value])),
        ("pipeline of 16 gets", get.repeat(16)),
        ("mset of 1000 pairs", encoded(&mset)),
    ]
}

/// The ranges of a request's arguments as redis-protocol finds them in the whole request.
fn ranges_again(request: &Request) -> SmallVec<[(u32, u32); 6]> {
    match decode_range(request.raw()).unwrap().unwrap() {
        (RangeFrame::Array(items), _) => items
            .iter()
            .map(|item| match item {
                RangeFrame::BulkString((start, end)) => (*start as u32, *end as u32),
                other => panic!("{other:?} is no argument"),
            })
            .collect(),
        (other, _) => panic!("{other:?} is no request"),
    }
}

fn decode(criterion: &mut Criterion) {
    let limits = Limits::default();
    for (name, input) in inputs() {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(input.len() as u64));
        let (mut reader, mut buffer) = (RequestReader::new(), BytesMut::with_capacity(64 * 1024));
        group.bench_function("reader", |bencher| {
            bencher.iter(|| {
                buffer.extend_from_slice(&input);
                while let Some(request) = reader.next(&mut buffer, &limits).unwrap() {
                    black_box(&request);
                }
            })
        });
        if input.starts_with(b"*") {
            group.bench_function("reader, then redis-protocol", |bencher| {
                bencher.iter(|| {
                    buffer.extend_from_slice(&input);
                    while let Some(request) = reader.next(&mut buffer, &limits).unwrap() {
                        black_box(ranges_again(&request));
                    }
                })
            });
        }
        group.finish();
    }
}

criterion_group!(benches, decode);
criterion_main!(benches);
