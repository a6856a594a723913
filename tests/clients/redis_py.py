"""redis-py against a running node: its defaults, both protocols, a long pipeline, a transaction, its own lock errors."""

import sys

import redis


def check(protocol, port):
    options = {} if protocol is None else {"protocol": protocol}
    client = redis.Redis(port=port, decode_responses=True, **options)
    name = f"redis-py:{protocol}"
    assert client.ping() is True
    assert client.set(name, "1", ex=100) is True
    assert client.incr(name) == 2
    assert 95 <= client.ttl(name) <= 100
    assert client.get("missing") is None

    pipeline = client.pipeline(transaction=False)
    for n in range(10_000):
        pipeline.set(f"{name}:{n % 100}", n)
    assert pipeline.execute() == [True] * 10_000

    def step(transaction):
        seen = int(transaction.get(name))
        transaction.multi()
        transaction.set(name, seen + 1)
        transaction.get(name)

    assert client.transaction(step, name) == [True, "3"]

    token = client.execute_command("LOCK", f"{name}:lock", "me", "PX", 30000)
    assert token > 0
    assert client.execute_command("LOCK", f"{name}:lock", "you") is None
    assert client.execute_command("UNLOCK", f"{name}:lock", "me", "TOKEN", token) == 1
    client.execute_command("QPUSH", f"{name}:queue", "payload")
    [[queue, receipt, payload, attempt]] = client.execute_command("QPOP", "FROM", f"{name}:queue")
    assert (queue, payload, attempt) == (f"{name}:queue", "payload", 1)
    assert client.execute_command("QACK", queue, receipt) == 1

    assert client.info()["redis_version"].replace(".", "").isdigit()
    assert client.config_get("maxclients")["maxclients"].isdigit()
    assert set(client.scan_iter(match=f"{name}:1?")) == {f"{name}:{n}" for n in range(10, 20)}
    try:
        client.incr(f"{name}:text" if client.set(f"{name}:text", "abc") else "")
        raise AssertionError("INCR of a text was not refused")
    except redis.ResponseError as error:
        assert "not an integer" in str(error)
    print(f"redis-py {redis.__version__}, protocol {protocol or 'default'}: ok")


for protocol in (None, 2, 3):
    check(protocol, int(sys.argv[1]))
